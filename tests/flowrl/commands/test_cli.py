"""The command line as a user meets it: what it prints, its exit codes, and one line for a mistake."""

import json
import statistics
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from cli_support import call, quiet
from flowrl import names
from flowrl.contracts import Prompt, Samples
from flowrl.recipe.load import load
from flowrl.recipe.presets import PRESETS
from flowrl.runs.start import run
from reward_models.jpeg import jpeg_compressibility

TINY = [
    "train.prompts=2",
    "train.group=2",
    "train.updates=1",
    "train.iterations=1",
    "eval.prompts=4",
    "eval.grid=4",
    "eval.steps=3",
]


def test_help_names_every_command(capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "--help")
    assert code == 0
    for command in ("run", "check", "eval", "sample", "scan", "export", "report", "list", "world"):
        assert command in out


def test_list_shows_what_ships(capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "list")
    assert code == 0
    for name in [*names.recipes(), *names.rewards(), *names.steps(), *names.MODELS, *PRESETS]:
        assert name in out
    _, rewards, _ = call(capsys, monkeypatch, "list", "rewards")
    assert "shapes_strict" in rewards and "tiny_flow_grpo" not in rewards


@pytest.mark.parametrize("name", sorted(names.recipes()))
def test_dry_run_of_every_recipe_loads_no_weights(name, capsys, monkeypatch):
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", lambda *_, **__: pytest.fail("weights loaded"))
    code, out, err = call(capsys, monkeypatch, "run", name, "--dry-run")
    assert code == 0, err
    assert "optimizer step" in out
    assert (("●" in out or "levels" in out) and "row-forwards" in out) or (
        "new tokens" in out and "token-forwards" in out
    )


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("trian.lr=1", ["trian", "did you mean 'train'"]),
        ("train.lr=fast", ["train.lr", "'fast'", "a number > 0"]),
        ("train.lr=.nan", ["train.lr", "nan"]),
        ("sampler.step=ode", ["sampler.step", "ode"]),
        ("sampler.step=flow_sed", ["sampler.step", "flow_sed", "flow_sde"]),
        ("train.updates=5", ["train.updates", "5"]),
        ("rewards.shapes.use=shape", ["rewards.shapes.use", "'shape'", "shapes"]),
        ("pipeline.heigth=32", ["pipeline.heigth", "height"]),
        ("device=gpu", ["device", "'gpu'", "cuda"]),
        ("prompts.train=nowhere.txt", ["prompts.train", "nowhere.txt"]),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(override, parts, capsys, monkeypatch):
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", lambda *_, **__: pytest.fail("weights loaded"))
    code, _, err = call(capsys, monkeypatch, "run", "tiny_flow_grpo", override)
    assert code == 2
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err
    for part in parts:
        assert part in err


def test_a_model_that_is_not_there_is_one_line(capsys, monkeypatch, tmp_path):
    code, _, err = call(
        capsys,
        monkeypatch,
        "run",
        "tiny_flow_grpo",
        "model=nobody/nothing",
        "pipeline={}",
        f"output={tmp_path / 'run'}",
    )
    assert code == 2 and len(err.strip().splitlines()) == 1 and "nobody/nothing" in err


def test_run_eval_and_sample_work_together(capsys, monkeypatch, tmp_path: Path):
    folder = tmp_path / "run"
    code, out, err = call(capsys, monkeypatch, "run", "tiny_flow_grpo", f"output={folder}", *TINY)
    assert code == 0, err
    assert "before" in out and "after" in out and "Weights" in out

    numbers = tmp_path / "eval.json"
    code, out, _ = call(capsys, monkeypatch, "eval", str(folder), "--output", str(numbers))
    assert code == 0 and "count" in out
    found = json.loads(numbers.read_text())["rewards"]["strict"]
    summary = json.loads((folder / "summary.json").read_text())["heldout"]["1"]["strict"]
    assert found == pytest.approx(summary)  # the trained weights, on the run's own evaluation noise

    picture = tmp_path / "out.png"
    arguments = ["sample", str(folder), "a red circle", "two blue squares", "eval.steps=3", "--number", "3"]
    code, out, _ = call(capsys, monkeypatch, *arguments, "--output", str(picture))
    with Image.open(picture) as sheet:
        width, height = sheet.size
    assert code == 0 and width / height == pytest.approx(3 / 2, abs=0.02)


# ------------------------------------------------------------------------ eval and sample, option by option


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that moved its weights far enough to be seen in every picture."""
    folder = tmp_path_factory.mktemp("runs") / "moved"
    more = ["train.lr=0.05", "train.ema=null", "rewards.shapes={use: jpeg_compressibility}"]
    run(load("tiny_flow_grpo", [f"output={folder}", *TINY, *more]), quiet())
    return folder


def evaluated(capsys, monkeypatch, file: Path, *arguments: str) -> dict:
    code, _, err = call(capsys, monkeypatch, "eval", *arguments, "--output", str(file))
    assert code == 0, err
    return json.loads(file.read_text())


def test_eval_pairs_a_run_with_its_base_at_equal_noise(moved, tmp_path, capsys, monkeypatch):
    numbers = evaluated(capsys, monkeypatch, tmp_path / "a.json", str(moved), "--base")
    bare = evaluated(
        capsys, monkeypatch, tmp_path / "b.json", "tiny_flow_grpo", *TINY, "rewards.shapes={use: jpeg_compressibility}"
    )
    assert numbers["base"]["scores"] == bare["scores"]  # a recipe's own model, on the same noise
    summary = json.loads((moved / "summary.json").read_text())["heldout"]["1"]["shapes"]
    assert numbers["rewards"]["shapes"] == pytest.approx(summary)  # the run's own evaluation, on the same noise too
    after, before, gap = (n["scores"]["shapes"] for n in (numbers, numbers["base"], numbers["difference"]))
    pairs = [a - b for a, b in zip(after, before, strict=True)]
    assert gap == pytest.approx(pairs, abs=1e-6) and max(map(abs, pairs)) > 1e-3
    found = numbers["difference"]["rewards"]["shapes"]
    assert found["value"] == pytest.approx(statistics.mean(pairs), abs=1e-6)
    assert found["error"] == pytest.approx(statistics.stdev(pairs) / len(pairs) ** 0.5, abs=1e-6)
    assert found["number"] == len(numbers["prompts"]) == 4
    kinds = [p["kind"] for p in numbers["prompts"]]
    of_kind = [p for p, k in zip(pairs, kinds, strict=True) if k == kinds[0]]
    assert numbers["difference"]["by_kind"]["shapes"][kinds[0]]["value"] == pytest.approx(statistics.mean(of_kind))


def test_eval_takes_other_prompts_rewards_and_steps_and_keeps_samples(moved, tmp_path, capsys, monkeypatch):
    source = tmp_path / "mine.jsonl"
    lines = [{"prompt": f"a {c} circle", "kind": c} for c in ("red", "blue", "green", "black", "yellow")]
    source.write_text("\n".join(map(json.dumps, lines)))
    options = ["--prompts", str(source), "--reward", "size=jpeg_compressibility", "--reward", "jpeg_incompressibility"]
    options += ["--steps", "2", "--save", str(tmp_path / "kept"), "eval.batch=2"]
    numbers = evaluated(capsys, monkeypatch, tmp_path / "a.json", str(moved), *options)
    assert [p["text"] for p in numbers["prompts"]] == [
        line["prompt"] for line in lines
    ]  # not only eval.prompts of them
    assert numbers["steps"] == 2 and set(numbers["by_kind"]["size"]) == {line["kind"] for line in lines}
    size, opposite = numbers["scores"]["size"], numbers["scores"]["jpeg_incompressibility"]
    assert set(numbers["rewards"]) == {"size", "jpeg_incompressibility"} and size == [-x for x in opposite]
    kept = sorted((tmp_path / "kept").iterdir())
    assert [p.name for p in kept] == [f"{i:05d}.png" for i in range(5)]
    images = torch.stack([to_tensor(Image.open(p)) for p in kept])
    again = jpeg_compressibility(Samples([Prompt("x", "x")] * 5, torch.arange(5), images=images))
    assert again.tolist() == pytest.approx(size, abs=1e-6)  # the pictures that were scored, in the prompts' order
    more = evaluated(capsys, monkeypatch, tmp_path / "b.json", str(moved), *options, "--steps", "3")
    assert more["scores"] != numbers["scores"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["eval", "tiny_flow_grpo", "--base"], ["--base", "a run's folder"]),
        (["eval", "tiny_flow_grpo", "--raw"], ["--raw", "a run's folder"]),
        (["sample", "tiny_flow_grpo", "x", "--weights", "best"], ["--weights best", "a run's folder"]),
        (["eval", "RUN", "--weights", "3"], ["--weights", "3", "no such checkpoint"]),
        (["eval", "RUN", "--weights", "finl"], ["'finl'", "final, best, last"]),
        (["eval", "RUN", "--reward", "nope"], ["rewards.nope.use", "'nope'"]),
        (["eval", "RUN", "--reward", "a=shapes", "--reward", "a=shapes_strict"], ["--reward", "twice"]),
        (["eval", "RUN", "--prompts", "nowhere.txt"], ["prompts.heldout", "nowhere.txt"]),
        (["eval", "RUN", "--output", "nowhere/a.json"], ["--output", "nowhere"]),
        (["sample", "RUN"], ["PROMPT", "--prompts"]),
        (["sample", "RUN", "seed=1"], ["only overrides (seed=1)", "--prompts"]),
    ],
)
def test_what_cannot_be_evaluated_is_one_line_before_the_model_is_loaded(arguments, parts, moved, capsys, monkeypatch):
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", lambda *_, **__: pytest.fail("weights loaded"))
    code, _, err = call(capsys, monkeypatch, *[str(moved) if a == "RUN" else a for a in arguments])
    assert code == 2 and len(err.strip().splitlines()) == 1
    assert all(part in err for part in parts), err


def test_sample_takes_prompts_from_a_file(moved, tmp_path, capsys, monkeypatch):
    source, picture = tmp_path / "mine.txt", tmp_path / "out.png"
    source.write_text("a red circle\na blue circle\ntwo squares\n")
    arguments = ["sample", str(moved), "one more", "--prompts", str(source), "--limit", "2", "--number", "2"]
    code, out, err = call(capsys, monkeypatch, *arguments, "--steps", "2", "--output", str(picture), "eval.batch=2")
    assert code == 0 and "3 x 2 samples" in out, err
    with Image.open(picture) as sheet:
        assert sheet.size[0] / sheet.size[1] == pytest.approx(2 / 3, abs=0.02)
        several = np.asarray(sheet.convert("RGB"), dtype=int)
    call(capsys, monkeypatch, *arguments, "--steps", "2", "--output", str(picture))
    with Image.open(picture) as sheet:  # however many are drawn at once: another batch size rounds otherwise
        assert np.abs(np.asarray(sheet.convert("RGB"), dtype=int) - several).max() <= 1
    call(capsys, monkeypatch, *arguments, "--steps", "3", "--output", str(picture))
    with Image.open(picture) as sheet:
        assert np.abs(np.asarray(sheet.convert("RGB"), dtype=int) - several).max() > 1


def test_a_tracked_run_is_evaluated_where_its_tracker_is_not_installed(moved, tmp_path, capsys, monkeypatch):
    text = (moved / "recipe.yaml").read_text()
    assert "  with: []" in text
    (tmp_path / "recipe.yaml").write_text(text.replace("  with: []", "  with: [comet_ml]"))
    (tmp_path / "lora").symlink_to(moved / "lora")
    monkeypatch.setitem(sys.modules, "comet_ml", None)
    code, _, err = call(capsys, monkeypatch, "eval", str(tmp_path))
    assert code == 0, err


def test_version(capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "--version")
    assert code == 0 and out.startswith("flowrl ")
