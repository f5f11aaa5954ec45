"""Whole runs of the quickstart: what a run leaves behind, and that the same seed gives the same numbers."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from PIL import Image

from cli_support import quiet
from flowrl import names
from flowrl.build import build_policy
from flowrl.contracts import Prompt
from flowrl.policies.noise import Key, start_generators
from flowrl.recipe.load import load
from flowrl.runs.start import run
from flowrl.runs.weights import load_weights

SMALL = ["train.prompts=2", "train.group=4", "train.updates=1", "train.iterations=2", "train.micro_batch=8"]
SMALL += ["train.rollout_batch=null", "eval.prompts=6", "eval.batch=6", "eval.grid=6", "eval.steps=4"]
SMALL += ["dtype.model=float32", "device=cpu", "train.gradient_checkpointing=false", "eval.every=1"]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a shortened quickstart."""
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    run(shortened(folder), quiet())
    return folder


def shortened(folder: Path, *more: str):
    return load("tiny_flow_grpo", [f"output={folder}", *SMALL, "train.iterations=3", "eval.every=2", *more])


def test_a_run_leaves_what_it_says(quickstart: Path):
    assert {p.name for p in quickstart.iterdir() if not p.name.startswith(".")} == {
        "heldout",
        "checkpoints",
        "run.json",
        "report.html",
        "recipe.yaml",
        "metrics.jsonl",
        "summary.json",
        "tensorboard",
        "samples",
        "lora",
    }
    assert {p.name for p in (quickstart / "samples").iterdir()} == {"before.png", "iteration_00002.png", "after.png"}
    sheet = Image.open(quickstart / "samples" / "before.png")
    assert sheet.size[0] > 200 and len(set(sheet.resize((20, 20)).tobytes())) > 10
    rows = lines(quickstart)
    assert [m["iteration"] for m in rows if m["kind"] == "train"] == [1, 2, 3]
    assert [m["iteration"] for m in rows if m["kind"] == "heldout"] == [0, 2, 3]
    assert {"reward/shapes/mean", "reward/strict/mean", "ratio", "clip_frac", "time_rollout"} <= set(rows[1])
    assert {"samples/saturation", "samples/diversity"} <= set(rows[1]) and "samples/saturation" in rows[0]
    summary = json.loads((quickstart / "summary.json").read_text())
    assert set(summary["heldout"]) == {"0", "2", "3"}
    assert list((quickstart / "tensorboard").glob("events*"))
    again = load(str(quickstart / "recipe.yaml"))
    assert (
        yaml.safe_load((quickstart / "recipe.yaml").read_text())["train"]["iterations"] == 3 == again.train.iterations
    )


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(quickstart: Path, tmp_path: Path):
    run(shortened(tmp_path / "again"), quiet())
    run(shortened(tmp_path / "other", "seed=1"), quiet())

    def numbers(folder: Path) -> list[dict]:
        return [{k: v for k, v in m.items() if not k.startswith("time_")} for m in lines(folder)]

    assert numbers(tmp_path / "again") == numbers(quickstart)
    assert numbers(tmp_path / "other") != numbers(quickstart)


def test_a_second_run_does_not_touch_the_first(quickstart: Path):
    before = (quickstart / "metrics.jsonl").read_text()
    summary = run(shortened(quickstart, "train.iterations=1", "eval.at_end=false"), quiet())
    assert Path(summary["folder"]) == quickstart.with_name("quickstart-2")
    assert (quickstart / "metrics.jsonl").read_text() == before


def test_the_lora_is_diffusers_own(quickstart: Path):
    """`pipe.load_lora_weights` on an untouched pipeline draws the pictures of the trained policy."""
    recipe = load(str(quickstart / "recipe.yaml"))
    policy = build_policy(recipe)
    load_weights(policy, quickstart)
    prompts = [Prompt(t, t) for t in ("a red circle", "two blue squares")]
    from flowrl.planning.costs import eval_plan

    ours = policy.rollout(prompts, group_size=1, plan=eval_plan(recipe), seed=5).samples.images
    pipe = DiffusionPipeline.from_pretrained(names.MODELS["shapes-flux"], dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        return pipe(
            prompt=[p.text for p in prompts],
            generator=start_generators([Key(5, p.id, 0) for p in prompts]),
            num_inference_steps=4,
            output_type="pt",
            **recipe.pipeline,
        ).images

    base = draw()
    pipe.load_lora_weights(quickstart / "lora")
    torch.testing.assert_close(draw(), ours, atol=1e-5, rtol=0)
    assert (base - ours).abs().max() > 1e-4


def test_micro_batches_and_rollout_batches_change_no_update(tmp_path: Path):
    """The first update is the same up to rounding however rows are cut."""
    found = []
    for cut in (["train.micro_batch=8"], ["train.micro_batch=3", "train.rollout_batch=4"]):
        folder = tmp_path / str(len(found))
        run(shortened(folder, "train.iterations=1", "eval.at_start=false", "eval.at_end=false", *cut), quiet())
        found.append(lines(folder)[0])
    for name in ("reward/shapes/mean", "grad_norm", "loss", "ratio"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-3, abs=1e-5)


def test_rewards_that_overlap_with_drawing_give_the_same_run(tmp_path: Path):
    more = [
        "train.rollout_batch=4",
        "rewards.shapes.overlap=true",
        "rewards.shapes.batch=3",
        "rewards.shapes.time_limit=60",
    ]
    for name, options in {"apart": more[:1], "meanwhile": more}.items():
        run(load("tiny_flow_grpo", [f"output={tmp_path / name}", *SMALL, *options]), quiet())
    rows = [lines(tmp_path / name) for name in ("apart", "meanwhile")]
    for row in (row for part in rows for row in part):
        for timed in [key for key in row if key.startswith("time_")]:
            del row[timed]
    assert rows[0] == rows[1] and len(rows[0]) == 5


def test_full_weights_train_and_are_saved(tmp_path: Path):
    run(shortened(tmp_path / "full", "lora=null", "full=true", "train.iterations=1", "train.lr=1e-5"), quiet())
    policy = build_policy(load(str(tmp_path / "full" / "recipe.yaml")))
    load_weights(policy, tmp_path / "full")
    fresh = build_policy(load("tiny_flow_grpo", ["lora=null", "full=true"]))
    pairs = list(zip(policy.trainable(), fresh.trainable(), strict=True))
    assert any(not torch.equal(a, b) for a, b in pairs) and all(a.shape == b.shape for a, b in pairs)


def test_half_precision_trains_with_ratio_one(tmp_path: Path):
    """bfloat16 weights and stored latents, float32 adapters and log-probs: a replay still is its rollout."""
    more = ["dtype.model=bfloat16", "dtype.trajectory=bfloat16", "train.iterations=2", "eval.at_start=false"]
    more += ["rewards.shapes={use: jpeg_compressibility}"]  # never ties, as a checker's scores may
    run(shortened(tmp_path / "half", *more, "objective.kl=0.01"), quiet())
    train = [m for m in lines(tmp_path / "half") if m["kind"] == "train"]
    assert train[0]["abs_log_ratio_max"] == 0.0 and train[0]["kl"] == 0.0
    assert train[0]["grad_norm"] > 0 and train[1]["kl"] > 0
