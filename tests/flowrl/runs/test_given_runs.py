"""Runs on samples from files: preferences that are learnt, kills and resumes, a model of noise, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import families
from cli_support import call, quiet
from clip_support import Made
from flowrl.media.pictures import save_picture
from flowrl.planning.costs import arithmetic
from flowrl.reading.pairs import load as load_pairs
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.runs.checkpoints import Checkpoints
from flowrl.runs.start import run
from resume_support import goes_on

TEXTS = ["a red circle", "two blue squares", "a green triangle above a red square", "a blue circle"]
NONE = ["eval.every=null", "eval.at_start=false", "eval.at_end=false", "checkpoint.every=null", "prompts.heldout=null"]
SMALL = [*NONE, "train.prompts=2", "train.updates=1", "train.iterations=3", "prompts.source=null", "eval.grid=0"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pairs of a light and a dark picture."""
    folder, generator = tmp_path_factory.mktemp("pairs"), torch.Generator().manual_seed(0)
    records = []
    for i, text in enumerate(TEXTS):
        for name, light in (("better", 0.5), ("worse", 0.0)):
            save_picture(0.5 * torch.rand(3, 32, 32, generator=generator) + light, folder / f"{name}{i}.png")
        records.append({"prompt": text, "better": f"better{i}.png", "worse": f"worse{i}.png"})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder / "pairs.jsonl"


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_offline_dpo_prefers_the_better_pictures(pairs: Path, tmp_path: Path) -> None:
    recipe = load("tiny_dpo_offline", [*SMALL, f"prompts.train={pairs}", f"output={tmp_path}", "train.iterations=6"])
    run(recipe, quiet())
    metrics = metrics_of(tmp_path)
    assert metrics[0]["loss"] == pytest.approx(0.6931472) and metrics[0]["forwards/rollout"] == 0
    assert metrics[0]["active_rows"] == 1 and arithmetic(recipe).rollout_forwards == 0
    assert metrics[0]["forwards/train"] <= arithmetic(recipe).train_forwards + arithmetic(recipe).reference_forwards
    assert metrics[-1]["implicit_accuracy"] == 1 and metrics[-1]["loss"] < 0.68


@pytest.mark.parametrize("preset", ["flow_rwr", "sft", "gors"])
def test_scored_pictures_are_fitted(preset: str, pairs: Path, tmp_path: Path) -> None:
    objective = f"{{preset: {preset}}}"
    more = [f"prompts.train={pairs}", f"output={tmp_path}", f"objective={objective}"]
    run(load("tiny_dpo_offline", [*SMALL, *more]), quiet())
    metrics = metrics_of(tmp_path)
    assert metrics[0]["grad_norm"] > 0 and metrics[0]["active_rows"] == 1


def test_diffusion_dpo_runs_on_a_model_of_noise(pairs: Path, tmp_path: Path) -> None:
    families.get("sdxl").build().save_pretrained(tmp_path / "sdxl")
    budget = ["pipeline.height=16", "pipeline.width=16", "dtype.model=float32", "device=cpu", "offload=false"]
    budget += ["train.micro_batch=3", "rewards={size: {use: jpeg_compressibility}}"]
    more = [f"model={tmp_path / 'sdxl'}", f"prompts.train={pairs}", f"output={tmp_path / 'run'}", *budget]
    recipe, shipped = load("diffusion_dpo_sdxl", [*SMALL, *more]), load("diffusion_dpo_sdxl")
    assert recipe.objective == shipped.objective and recipe.sampler == shipped.sampler and recipe.lora == shipped.lora
    run(recipe, quiet())
    metrics = metrics_of(tmp_path / "run")
    assert len(metrics) == 3 and metrics[0]["loss"] == pytest.approx(0.6931472)
    assert all(m["grad_norm"] > 0 and m["nonfinite_updates"] == 0 for m in metrics)


def test_pairs_are_drawn_ranked_and_written(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "two.txt").write_text("\n".join(TEXTS[:2]))
    more = ["rewards={size: {use: jpeg_compressibility}}", "eval.steps=2", f"prompts.train={tmp_path / 'two.txt'}"]
    given = ["--number", 5, "--group", 4, "--each", 2, "--output", tmp_path / "out"]
    code, out, _ = call(capsys, monkeypatch, "pairs", "tiny_flow_grpo", *more, *given)
    assert code == 0 and "5 pairs of 16 samples" in out
    prompts = load_pairs(str(tmp_path / "out" / "pairs.jsonl"))
    assert [p.text for p in prompts] == [TEXTS[0]] * 2 + [TEXTS[1]] * 2 + [TEXTS[0]]
    for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines():
        better, worse = json.loads(line)["rewards"]
        assert better > worse
    code, _, err = call(capsys, monkeypatch, "pairs", "tiny_flow_grpo", "--output", tmp_path / "out")
    assert code != 0 and "holds pairs already" in err
    wide = [*more, "--group", 2, "--margin", 1e9, "--output", tmp_path / "none"]
    code, _, err = call(capsys, monkeypatch, "pairs", "tiny_flow_grpo", *wide)
    assert (
        code != 0
        and "of 4 samples none differ in reward by 1e+09" in err
        and not (tmp_path / "none/pairs.jsonl").exists()
    )


TINY = ["pipeline.height=16", "pipeline.width=16", "device=cpu", "dtype.model=float32", "offload=false"]


@pytest.mark.parametrize(("name", "family"), [("rpo_sd15", "sd15"), ("pair_grpo", "sd3")])
def test_a_recipe_of_given_and_drawn_samples_runs(name: str, family: str, pairs: Path, tmp_path: Path) -> None:
    families.get(family).build().save_pretrained(tmp_path / family)
    (tmp_path / "clip").mkdir()
    clip, source = Made(tmp_path / "clip"), pairs
    if name == "rpo_sd15":
        source = pairs.parent / "photographs.jsonl"
        files = [f"better{i}.png" for i in range(len(TEXTS))]
        lines = [{"prompt": t, "files": [f], "media": files} for t, f in zip(TEXTS, files, strict=True)]
        source.write_text("\n".join(map(json.dumps, lines)))
        given = [f"rewards.{n}.args.{k}={v}" for n in ("fit", "harmonic") for k, v in clip.args["clip_score"].items()]
        given += ["eval.best=harmonic", "eval.at_end=true", f"prompts.heldout={source}", "eval.steps=2", "eval.batch=4"]
    else:
        given = ["rewards={dark: {use: jpeg_compressibility}}", "train.group=3", "train.micro_batch=4"]
    run_as = [f"model={tmp_path / family}", f"prompts.train={source}", f"output={tmp_path / 'run'}", *TINY]
    small = [c for c in SMALL if not c.startswith("prompts.heldout")] if name == "rpo_sd15" else SMALL
    recipe = load(name, [*small, *run_as, "train.prompts=2", "train.rollout_batch=null", *given])
    shipped = load(name)
    for part in ("objective", "sampler", "lora", "advantage"):
        assert getattr(recipe, part) == getattr(shipped, part)
    assert recipe.curves == shipped.curves and recipe.train.pool == shipped.train.pool
    run(recipe, quiet())
    metrics = metrics_of(tmp_path / "run")
    trained = [m for m in metrics if m["kind"] == "train"]
    assert len(trained) == 3 and all(m["grad_norm"] > 0 and m["given"] == 1 for m in trained)
    if name == "rpo_sd15":
        kept = Checkpoints(tmp_path / "run").find("best")
        assert kept.iteration == 3 and trained[0]["similarity"] > 0


MIXED = [
    "train.group=4",
    "train.pairs=1",
    "train.source={0: 1.0, 2: 0.0}",
    "rewards={dark: {use: jpeg_compressibility}}",
]


def test_a_mix_that_falls_survives_a_kill_bit_for_bit(pairs: Path, tmp_path: Path) -> None:
    more = [*SMALL, *MIXED, f"prompts.train={pairs}", "checkpoint.every=1", "checkpoint.keep=5"]
    _, whole = goes_on("tiny_dpo_offline", more, tmp_path)
    metrics = metrics_of(whole)
    assert [m["curve/train.source"] for m in metrics] == [1.0, 0.5, 0.0] == [m["given"] for m in metrics]
    rows = [m["forwards/rollout"] for m in metrics]
    assert rows[0] * 2 == rows[2] and rows[0] < rows[1] < rows[2]  # of four samples two are given at first


@pytest.mark.parametrize("preset", ["rpo", "pair_grpo"])
def test_presets_of_given_and_drawn_samples(preset: str, pairs: Path, tmp_path: Path) -> None:
    given = [*SMALL, *MIXED, "sampler.levels=null", "train.source=null", f"objective={{preset: {preset}}}"]
    recipe = load("tiny_dpo_offline", [*given, f"prompts.train={pairs}", f"output={tmp_path}"])
    run(recipe, quiet())
    metrics = metrics_of(tmp_path)
    assert all(m["grad_norm"] > 0 and m["given"] == 1 for m in metrics)
    assert recipe.train.pool == (2 if preset == "pair_grpo" else 1) and recipe.train.share == 1
    if preset == "rpo":
        assert metrics[0]["preference"] == pytest.approx(0.6931472) and 0 < metrics[0]["label"] < 1


REFUSED = [
    (["train.source=0.5", "objective.loss={kind: sft}"], "train.source", "'sft' takes samples of one sort"),
    (["train.source=1.5"], "train.source", "a number from 0 to 1"),
    (["objective.loss={kind: rpo}"], "train.source", "set train.source=1, and train.group=2 or more"),
    (["train.pool=5"], "train.pool", "accepted: a divisor of train.prompts = 48"),
    (["train.pool=2", "train.source=0.5", "train.group=3", "train.refill=1"], "train.pool", "with train.refill"),
    (["objective={preset: nft}", "train.old=0"], "train.source", "loss 'nft' is of samples that the model draws"),
    (["train.refill=1"], "train.refill", "samples from files are taken as they are"),
    (["train.source=rollouts", "objective.loss={kind: sft}"], "train.source", "loss 'sft' is of samples from files"),
    (["train.source=files", "objective={preset: grpo}", "sampler.levels=null"], "train.source", "noises no finished"),
]


@pytest.mark.parametrize(("changes", "place", "message"), REFUSED)
def test_what_does_not_go_with_files_is_refused(changes: list[str], place: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        load("tiny_dpo_offline", changes)
    assert str(error.value).startswith(place)


def test_a_mix_without_room_for_drawn_samples_is_refused(pairs: Path, tmp_path: Path) -> None:
    more = [*SMALL, *MIXED, f"prompts.train={pairs}", f"output={tmp_path / 'run'}", "train.group=2"]
    with pytest.raises(ValueError, match=r"train.group: got 2, but .* has 2 samples .*; set train.group=3 or more"):
        run(load("tiny_dpo_offline", more), quiet())


def test_a_group_of_another_size_is_refused(pairs: Path, tmp_path: Path) -> None:
    more = [*SMALL, f"prompts.train={pairs}", f"output={tmp_path / 'run'}", "train.group=3"]
    with pytest.raises(ValueError, match="train.group: got 3, but .* has 2 samples for each prompt; set train.group=2"):
        run(load("tiny_dpo_offline", more), quiet())
