"""Runs whose objective noises finished samples again: recipes that ship, and every preset on the shapes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import families
import published_rewards
from cli_support import quiet
from flowrl.planning.costs import arithmetic
from flowrl.recipe.load import load
from flowrl.runs.checkpoints import Checkpoints
from flowrl.runs.checkpoints import load as load_checkpoint
from flowrl.runs.start import run
from resume_support import goes_on

NONE = ["eval.every=null", "eval.at_start=false", "eval.at_end=false", "checkpoint.every=null"]
SMALL = [*NONE, "train.prompts=2", "train.group=4", "train.keep=null", "train.updates=1", "train.iterations=2"]
SMALL += ["rewards.shapes={use: jpeg_compressibility}", "rewards.strict=null", "prompts.heldout=null"]
SMALL += ["sampler.steps=4", "sampler.levels.number=2"]
BUDGET = [*NONE, "train.iterations=3", "train.prompts=2", "train.group=4", "train.updates=1", "train.micro_batch=3"]
BUDGET += ["train.rollout_batch=null", "dtype.model=float32", "device=cpu", "offload=false"]
SHAPES = ["model=shapes-flux", "pipeline.height=32", "pipeline.width=32", "pipeline.max_sequence_length=16"]
SHAPES += ["prompts={train: shapes/train, heldout: null}"]
SD3 = [
    "pipeline.height=16",
    "pipeline.width=16",
    "train.prompts=1",
    "prompts={train: prompts/train.txt, heldout: null}",
]
WAN = ["pipeline.height=16", "pipeline.width=16", "pipeline.num_frames=5", "pipeline.max_sequence_length=48"]
WAN += ["train.prompts=1", "prompts={train: prompts/video_train.txt, heldout: null}"]
FAMILIES = {"sd3": SD3, "wan_unipc": WAN}
RECIPES = {"quickstart": SHAPES, "tiny_dpo": SHAPES, "nft_flux": SHAPES, "flow_dpo_wan": WAN, "flow_rwr_wan": WAN}
RECIPES |= dict.fromkeys(("nft_sd3", "awm_sd3", "flow_dpo_sd3", "dgpo_sd3", "crd_sd3"), SD3)


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


SMALLER = {  # 40 steps and 39 levels; groups that a micro-batch may not cut without a further forward
    "flow_dpo_sd3": ["sampler.steps=5", "sampler.levels.number=3"],
    "dgpo_sd3": ["train.micro_batch=4"],
    "crd_sd3": ["train.micro_batch=4"],
    "quickstart": ["train.keep=2"],
    "tiny_dpo": ["train.pairs=2", "train.micro_batch=4"],
    "flow_rwr_wan": ["sampler.steps=5"],
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_as_published(name: str, tmp_path: Path) -> None:
    changes = [*BUDGET, *RECIPES[name], *SMALLER.get(name, [])]
    if RECIPES[name] is not SHAPES or name == "nft_flux":
        (tmp_path / "rewards").mkdir()
        made = published_rewards.checkpoints(tmp_path / "rewards")
        changes += published_rewards.overrides(load(name), made)
    for family, settings in FAMILIES.items():
        if RECIPES[name] is settings:
            families.get(family).build().save_pretrained(tmp_path / family)
            changes += [f"model={tmp_path / family}"]
    recipe, shipped = load(name, [f"output={tmp_path / 'run'}", *changes]), load(name)
    for part in ("lora", "advantage", "objective", "sampler"):
        assert getattr(recipe, part) == getattr(shipped, part) or (part == "sampler" and "sampler.steps=5" in changes)
    assert recipe.sampler.look == shipped.sampler.look
    assert recipe.train.old == shipped.train.old and recipe.train.sample_old == shipped.train.sample_old

    run(recipe, quiet())
    found = metrics_of(tmp_path / "run")
    assert len(found) == 3
    for i, metrics in enumerate(found):
        costs = arithmetic(recipe, i)
        assert metrics["grad_norm"] > 0 and metrics["nonfinite_updates"] == 0
        assert metrics["forwards/rollout"] == costs.rollout_forwards
        assert 0 < metrics["forwards/train"] <= costs.train_forwards + costs.reference_forwards
    assert recipe.train.old is None or found[0]["old_distance"] == 0.0
    assert ("kl" in found[0]) == (recipe.objective.kl > 0)
    if recipe.objective.kl > 0:
        assert found[0]["kl"] == 0.0 < found[1]["kl"]


@pytest.mark.parametrize("preset", ["dgpo", "crd", "flow_dpo", "flow_rwr"])
def test_a_preset_runs(preset: str, tmp_path: Path) -> None:
    more = ["sampler.levels={kind: uniform, number: 2}", f"output={tmp_path}"]
    run(load("quickstart", [*SMALL, f"objective={{preset: {preset}, kl: 0.1}}", *more]), quiet())
    first, second = metrics_of(tmp_path)
    assert first["grad_norm"] > 0 and first["kl"] == 0.0 < second["kl"]
    assert first["active_rows"] == (0.5 if preset == "flow_dpo" else 1.0)
    if preset == "flow_dpo":
        assert first["loss"] == pytest.approx(0.6931472) and 0 <= second["implicit_accuracy"] <= 1


def test_the_older_copy_follows_its_curve(tmp_path: Path) -> None:
    """After two iterations of one step: d copy + (1 - d) weights, with the decay d of that number of steps."""
    curve = "train.old={by: updates, points: {0: 0.0, 4: 0.8}}"
    more = [curve, "train.sample_old=true", "train.ema=null", f"output={tmp_path}", "checkpoint.every=1"]
    run(load("quickstart", [*SMALL, *more, "checkpoint.keep=5", "train.schedule=constant"]), quiet())
    saved = [load_checkpoint(found) for found in Checkpoints(tmp_path, 5).all()]
    weights = [list(state["parameters"].values()) for state in saved]
    old = [state["learner"]["copies"]["old"] for state in saved]
    assert len(saved) == 3 and all(torch.equal(a, b) for a, b in zip(old[0], weights[0], strict=True))
    for step, decay in ((1, 0.2), (2, 0.4)):
        for was, now, new in zip(old[step - 1], old[step], weights[step], strict=True):
            torch.testing.assert_close(now, decay * was + (1 - decay) * new.reshape(now.shape))


def test_the_older_copy_and_its_curve_survive_a_kill(tmp_path: Path) -> None:
    more = [*SMALL, "train.iterations=3", "train.updates=2", "checkpoint.every=1", "checkpoint.keep=5"]
    more += ["train.old={by: updates, points: {2: 0.0, 6: 0.5}}", "train.sample_old=true"]
    goes_on("quickstart", more, tmp_path)
