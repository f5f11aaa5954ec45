"""train.seconds and eval.every_seconds: a run that time ends, its evaluations, its learning rate, its resume.

A clock that gives every iteration two seconds stands in for the real one, so that all numbers are known.
"""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from cli_support import quiet
from flowrl.core.iterate import Iteration, iterate
from flowrl.planning.duration import Pace, duration
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.report.read import read_run
from flowrl.runs import checkpoints as state
from flowrl.runs import loop
from flowrl.runs.start import run
from flowrl.runs.stopping import Stopped
from resume_support import QUICK_TEXT, final_state, metrics, same

TIMED = [*QUICK_TEXT, "train.iterations=50", "train.seconds=5", "eval.every=1000", "eval.every_seconds=4"]


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(*args: Any, **kwargs: Any) -> Iteration:
        result = iterate(*args, **kwargs)
        result.metrics |= {"time_rollout": 1.0, "time_score": 0.25, "time_train": 0.75, "time_rollout/draw": 0.5}
        return result

    monkeypatch.setattr(loop, "iterate", timed)


def train(folder: Path, *more: str, resume: bool = False) -> dict[str, Any]:
    recipe = load("tiny_lm_grpo", [*TIMED, *more, f"output={folder}"])
    return run(recipe, quiet(), resume=folder if resume else None)


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [row for row in metrics(folder) if row["kind"] == kind]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    train(tmp_path / "whole")
    return tmp_path / "whole"


def test_time_ends_a_run_and_says_when_to_evaluate(whole: Path):
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["iterations"], summary["spent"]) == (3, 6.0)  # 2, 4, 6: the third passes 5
    assert [row["iteration"] for row in rows(whole, "heldout")] == [0, 2, 3]  # start, 4 seconds, end
    assert state.Checkpoints(whole).find("last").iteration == 3 and (whole / "lora").is_dir()
    assert read_run(whole).finished
    assert all(row["forwards/rollout"] > 0 and row["forwards/train"] > 0 for row in rows(whole, "train"))


def test_a_schedule_goes_by_the_time_that_is_spent(whole: Path, tmp_path: Path):
    share = [2 / 100, 2 / 5, 4 / 5]  # two of a hundred steps, then two and four of five seconds
    assert [row["lr"] for row in rows(whole, "train")] == pytest.approx([2e-3 * (1 - s) for s in share], rel=1e-6)
    train(tmp_path / "short", "train.iterations=2")  # the iterations are further than the time
    assert [row["lr"] for row in rows(tmp_path / "short", "train")][1] <= 2e-3 / 2


def test_a_run_that_is_stopped_and_resumed_spends_the_same_time(whole: Path, tmp_path: Path, monkeypatch: Any):
    folder, step = tmp_path / "run", loop.Run._step

    def stopped(self: loop.Run, progress: Any) -> None:
        step(self, progress)
        if self.state.iteration == 2:
            raise Stopped(signal.SIGINT)  # before the evaluation that is due

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(loop.Run, "_step", stopped)
        train(folder)
    train(folder, resume=True)
    assert metrics(folder) == metrics(whole) and same(final_state(folder), final_state(whole))
    assert state.load(state.Checkpoints(folder).find("last"))["mark"]["spent"] == [6.0, 1]


def test_a_run_whose_time_is_over_goes_on_only_with_more(whole: Path):
    before = metrics(whole)
    assert train(whole, resume=True)["iterations"] == 3 and metrics(whole) == before
    assert len(json.loads((whole / "run.json").read_text())["starts"]) == 1  # nothing was begun
    assert train(whole, "train.seconds=7", resume=True)["iterations"] == 4
    assert [row["iteration"] for row in rows(whole, "heldout")] == [0, 2, 3, 4]


def test_the_estimate_ends_with_the_time():
    recipe = load("tiny_flow_grpo", ["eval.every=1000"])
    pace = Pace(forward=1e-3, training=2e-3)
    free = duration(recipe, pace, 320)
    limit = (free.rollout + free.training) / 4
    timed = ["eval.every=1000", f"train.seconds={limit}", f"eval.every_seconds={limit / 2}"]
    short = duration(load("tiny_flow_grpo", timed), pace, 320)
    assert short.rollout + short.training == pytest.approx(limit)
    assert short.evaluation == pytest.approx(free.evaluation * 2)  # start, middle, the multiple at the end, end


@pytest.mark.parametrize("key", ["train.seconds=0", "eval.every_seconds=-1"])
def test_no_time_at_all_is_refused(key: str):
    with pytest.raises(RecipeError, match="a number > 0 or null"):
        load("tiny_flow_grpo", [key])
