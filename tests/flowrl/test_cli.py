"""The command line as a user meets it: what it prints, its exit codes, and one line for a mistake."""

import json
from pathlib import Path

import pytest
from PIL import Image

from flowrl import cli, names

TINY = [
    "train.prompts=2",
    "train.group=2",
    "train.updates=1",
    "train.iterations=1",
    "eval.prompts=4",
    "eval.grid=4",
    "eval.steps=3",
]


def call(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `flowrl` with these arguments."""
    monkeypatch.setattr("sys.argv", ["flowrl", *arguments])
    monkeypatch.setenv("COLUMNS", "160")
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_names_every_command(capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "--help")
    assert code == 0
    for command in ("run", "check", "eval", "sample", "list", "world"):
        assert command in out


def test_list_shows_what_ships(capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "list")
    assert code == 0
    for name in [*names.recipes(), *names.rewards(), *names.steps(), *names.MODELS]:
        assert name in out
    _, rewards, _ = call(capsys, monkeypatch, "list", "rewards")
    assert "shapes_strict" in rewards and "quickstart" not in rewards


@pytest.mark.parametrize("name", sorted(names.recipes()))
def test_dry_run_of_every_recipe_loads_no_weights(name, capsys, monkeypatch):
    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", lambda *_, **__: pytest.fail("weights loaded"))
    code, out, err = call(capsys, monkeypatch, "run", name, "--dry-run")
    assert code == 0, err
    assert "●" in out and "row-forwards" in out and "optimizer step" in out


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
    code, _, err = call(capsys, monkeypatch, "run", "quickstart", override)
    assert code == 2
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err
    for part in parts:
        assert part in err


def test_a_model_that_is_not_there_is_one_line(capsys, monkeypatch, tmp_path):
    code, _, err = call(
        capsys, monkeypatch, "run", "quickstart", "model=nobody/nothing", "pipeline={}", f"output={tmp_path / 'run'}"
    )
    assert code == 2 and len(err.strip().splitlines()) == 1 and "nobody/nothing" in err


def test_run_eval_and_sample_work_together(capsys, monkeypatch, tmp_path: Path):
    folder = tmp_path / "run"
    code, out, err = call(capsys, monkeypatch, "run", "quickstart", f"output={folder}", *TINY)
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


def test_version(capsys, monkeypatch):
    code, out, _ = call(capsys, monkeypatch, "--version")
    assert code == 0 and out.startswith("flowrl ")
