"""Whole runs with a learning rate that ruins the model: warned of, stopped, or rolled back and rescued."""

import json
from pathlib import Path

import pytest

from flowrl.runs import checkpoints as state
from flowrl.runs.alarm_response import AlarmError
from resume_support import assert_same_run, metrics, train

RUINOUS = ["train.prompts=4", "train.group=6", "train.updates=2", "train.iterations=8", "train.lr=0.05", "eval.every=2"]
RUINOUS += [
    "eval.prompts=40",
    "eval.batch=40",
    "eval.grid=0",
    "eval.steps=4",
    "checkpoint.every=2",
    "checkpoint.keep=9",
]
RUINOUS += [
    "watch.on_hack=warn",
    "sampler.steps=4",
    "rewards.shapes={use: jpeg_compressibility}",
    "rewards.strict=null",
]


def alarms(folder: Path) -> list[dict]:
    path = folder / "alarms.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def rescued(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alarmed") / "rescued"
    train("tiny_flow_grpo", [*RUINOUS, "watch.on_alarm=rollback"], folder)
    return folder


def ruined_by(rescued: Path) -> Path:
    """The same run without a watchdog that acts."""
    folder = rescued.with_name("ruined")
    if not folder.exists():
        train("tiny_flow_grpo", RUINOUS, folder)
    return folder


def test_rollback_returns_to_the_best_and_halves_the_rate(rescued: Path):
    rung = [a for a in alarms(rescued) if a["action"] == "rollback"]
    assert rung and rung[0]["name"] in ("kl", "collapse") and all(rung[0][k] for k in ("what", "cause", "remedy"))
    at = rung[0]["iteration"]
    rates = {line["iteration"]: line["lr"] for line in metrics(rescued) if line["kind"] == "train"}
    schedule = {i: 0.05 * (1 - (2 * i - 1) / 16) for i in rates}  # of each iteration's second step
    assert rates[at] == pytest.approx(schedule[at], rel=0.2) and rates[at + 1] < 0.6 * schedule[at + 1]
    scores = {line["iteration"]: line["shapes/mean"] for line in metrics(rescued) if line["kind"] == "heldout"}
    ruined = {m["iteration"]: m["shapes/mean"] for m in metrics(ruined_by(rescued)) if m["kind"] == "heldout"}
    assert ruined[8] < scores[0] - 0.1 and scores[8] > ruined[8] + 0.1  # left alone, the model is lost


def test_a_kill_after_a_rollback_resumes_bit_for_bit(rescued: Path, tmp_path: Path):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(rescued, folder)
    at = alarms(rescued)[0]["iteration"]
    for checkpoint in state.Checkpoints(folder).all():
        if checkpoint.iteration > at - 2:  # before the alarm: it has to ring again
            shutil.rmtree(checkpoint.path)
    (folder / "summary.json").unlink()
    train("tiny_flow_grpo", [*RUINOUS, "watch.on_alarm=rollback"], folder, resume=True)
    assert_same_run(folder, rescued)
    assert alarms(folder) == alarms(rescued)


def test_stop_ends_the_run_with_everything_saved(rescued: Path, tmp_path: Path):
    with pytest.raises(AlarmError, match="stopped by the alarm (kl|collapse): "):
        train("tiny_flow_grpo", [*RUINOUS, "watch.on_alarm=stop"], tmp_path / "run")
    at = alarms(rescued)[0]["iteration"]
    assert state.Checkpoints(tmp_path / "run").find("last").iteration == at
    assert [m["iteration"] for m in metrics(tmp_path / "run")][-1] == at


def test_warn_goes_on(rescued: Path):
    folder = ruined_by(rescued)
    assert {a["action"] for a in alarms(folder)} == {"warn"}
    assert (folder / "summary.json").is_file()
