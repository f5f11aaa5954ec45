"""Runs that follow the gradient of the rewards, by every preset on the shapes."""

import json
from pathlib import Path
from typing import Any

import pytest

import families
import published_rewards
from cli_support import quiet
from flowrl.planning.costs import arithmetic
from flowrl.recipe.load import load
from flowrl.runs.start import run

NONE = ["eval.every=null", "eval.at_start=false", "eval.at_end=false", "checkpoint.every=null"]
SMALL = [*NONE, "train.prompts=3", "train.iterations=2", "train.micro_batch=2", "prompts.heldout=null"]
SMALL += ["rewards.shapes=null", "rewards.strict=null", "train.schedule=constant"]
WORDS = "objective.loss={positive: [bright, sharp], negative: [dark]}"
BEAUTY = "{use: aesthetic, weight: 0.1, args: {model: shapes-clip, head: shapes-aesthetic}}"
PRESETS = {
    "refl": ["sampler.levels={kind: walk, low: -2, number: 1}", "objective.loss={threshold: 2.0}"],
    "draft1": ["sampler.levels={kind: walk, low: -1}"],
    "draft_k": ["sampler.levels={kind: walk, low: -3}"],
    "alignprop": ["sampler.levels={kind: tail}"],
    "draft_lv": ["sampler.levels={kind: again, number: 2}"],
    "drtune": ["sampler.levels={kind: spaced}"],
    "flowbp_sparse": ["sampler.levels={kind: walk, number: 3, bias: 2.0, whole: true}"],
    "flowbp_bridge": ["sampler.levels={kind: bridge}"],
    "leapalign": ["sampler.levels={kind: leap}", "objective.loss={tau: 0.1}"],
    "seedance": ["sampler.levels={kind: walk, low: -2, number: 1}", f"rewards.beauty={BEAUTY}"],
    "reda": ["sampler.levels={kind: walk, low: -1}", "objective.loss={target: [0.6, 0.5, 0.7]}"],
    "srpo": ["sampler.levels={kind: align}", WORDS],
}


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


HELD = ("refl", "draft_lv", "flowbp_bridge", "srpo")  # which pay a divergence here


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_runs(preset: str, tmp_path: Path) -> None:
    given = [*PRESETS[preset], f"objective.kl={0.5 if preset in HELD else 0}", f"output={tmp_path}"]
    recipe = load("tiny_draft", [*SMALL, f"objective={{preset: {preset}}}", *given])
    run(recipe, quiet())
    found = metrics_of(tmp_path)
    assert len(found) == 2
    for i, metrics in enumerate(found):
        assert metrics["grad_norm"] > 0 and metrics["nonfinite_updates"] == 0 and metrics["active_rows"] == 1.0
        planned = arithmetic(recipe, i)
        assert metrics["forwards/train"] == planned.train_forwards + planned.reference_forwards
    kl = [metrics.get("kl") for metrics in found]
    assert kl[0] == pytest.approx(0, abs=1e-9) and kl[1] > 0 if preset in HELD else kl == [None, None]
    told = {"srpo": "relative_reward"} | dict.fromkeys(["refl", "draft_lv", "seedance"], "estimate_reward")
    told = told.get(preset, "sample_loss")
    assert found[0][told] != 0.0
    if told == "sample_loss" and preset not in ("drtune", "leapalign", "reda"):
        assert found[0][told] == pytest.approx(-found[0]["reward/clip/mean"], abs=0.01)  # of pixels, not of 8 bits


def test_the_demonstration_of_a_hack_runs(tmp_path: Path) -> None:
    small = [*NONE, "train.prompts=3", "train.iterations=2", "watch.on_hack=null", "prompts.heldout=null"]
    recipe = load("tiny_refl", [*small, f"output={tmp_path}"])
    run(recipe, quiet())
    found = metrics_of(tmp_path)
    assert len(found) == 2 and all(m["grad_norm"] > 0 and m["active_rows"] == 1.0 for m in found)
    assert abs(found[0]["estimate_reward"] - found[0]["reward/clip/mean"]) > 1e-3  # of the estimate, not of the sample


@pytest.mark.parametrize("inversion", [True, False])
def test_tiny_srpo_runs(inversion: bool, tmp_path: Path) -> None:
    """Three iterations of the recipe as it is, but for fewer prompts; without inversion there is one branch."""
    small = ["train.prompts=5", "train.iterations=3", "prompts.heldout=null", *NONE, f"output={tmp_path}"]
    recipe = load("tiny_srpo", [*small, f"sampler.levels={{kind: align, inversion: {str(inversion).lower()}}}"])
    run(recipe, quiet())
    found = metrics_of(tmp_path)
    assert len(found) == 3
    for i, metrics in enumerate(found):
        assert metrics["grad_norm"] > 0 and metrics["nonfinite_updates"] == 0
        assert metrics["forwards/train"] == arithmetic(recipe, i).train_forwards == 5 * (1 + inversion)
        assert 0 < metrics["reward/brightness/mean"] < 1 and 0 < metrics["reward/saturation/mean"] < 1


@pytest.mark.parametrize(("name", "family"), [("draft_sdxl", "sdxl"), ("refl_sd3", "sd3")])
def test_a_recipe_runs_as_published(name: str, family: str, tmp_path: Path) -> None:
    """Three iterations with a tiny random pipeline and tiny checkpoints of the rewards."""
    (tmp_path / "rewards").mkdir()
    made = published_rewards.checkpoints(tmp_path / "rewards")
    families.get(family).build().save_pretrained(tmp_path / family)
    small = [*NONE, f"model={tmp_path / family}", "pipeline.height=16", "pipeline.width=16", "train.prompts=3"]
    small += ["prompts={train: prompts/train.txt, heldout: null}", "train.iterations=3", "offload=false", "device=cpu"]
    small += ["dtype.model=float32", "watch.on_hack=null", "train.rollout_batch=null"]
    small += published_rewards.overrides(load(name), made)
    recipe, shipped = load(name, [f"output={tmp_path / 'run'}", *small]), load(name)
    assert (recipe.objective, recipe.sampler, recipe.lora) == (shipped.objective, shipped.sampler, shipped.lora)
    run(recipe, quiet())
    found = metrics_of(tmp_path / "run")
    assert len(found) == 3
    for i, metrics in enumerate(found):
        assert metrics["grad_norm"] > 0 and metrics["nonfinite_updates"] == 0 and metrics["active_rows"] == 1.0
        assert metrics["forwards/train"] == arithmetic(recipe, i).train_forwards == 3


def test_srpo_flux_runs_as_published(tmp_path: Path) -> None:
    """Three iterations of the recipe with small models in the real formats in place of large ones."""
    made = published_rewards.checkpoints(tmp_path)
    small = [*NONE, "model=shapes-flux", "pipeline.height=32", "pipeline.width=32", "pipeline.max_sequence_length=16"]
    small += ["prompts={train: shapes/train, heldout: null}", "train.prompts=5", "train.iterations=3", "offload=false"]
    small += ["dtype.model=float32", "device=cpu", "train.micro_batch=2", "train.rollout_batch=null", "sampler.steps=4"]
    small += published_rewards.overrides(load("srpo_flux"), made)
    recipe, shipped = load("srpo_flux", [f"output={tmp_path / 'run'}", *small]), load("srpo_flux")
    assert (recipe.objective, recipe.sampler.levels) == (shipped.objective, shipped.sampler.levels)
    assert (recipe.sampler.look, recipe.full) == (shipped.sampler.look, True)
    run(recipe, quiet())
    found = metrics_of(tmp_path / "run")
    assert len(found) == 3
    for i, metrics in enumerate(found):
        assert metrics["grad_norm"] > 0 and metrics["nonfinite_updates"] == 0 and metrics["active_rows"] == 1.0
        assert metrics["forwards/train"] == arithmetic(recipe, i).train_forwards == 10
    assert found[0]["relative_reward"] != found[1]["relative_reward"] != 0.0
