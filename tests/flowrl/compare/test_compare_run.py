"""Grids that really run: two variants with two seeds, interrupted, resumed, failing, and measured afterwards."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from compare_support import Forked
from flowrl.compare import collect, drift, grid
from flowrl.compare.execute import execute, is_done, progress_of
from flowrl.compare.grid import Cell, Variant
from flowrl.recipe.load import load
from flowrl.runs.stopping import Stopped, Stopping
from resume_support import QUICK, assert_same_run, train

SHORT = [*QUICK, "rewards.shapes={use: shapes}", "train.iterations=10", "train.lr=0.01", "eval.every=1", "threads=1"]
SHORT += ["checkpoint.every=1000", "eval.prompts=3"]


def cells(output: Path, *vary: str, seeds: int = 2) -> list[Cell]:
    return grid.make_cells("tiny_flow_grpo", SHORT, grid.make_variants(vary), seeds=seeds, output=output)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> list[Cell]:
    """A grid that was stopped while its first run was under way, and gone on with."""
    found = cells(tmp_path_factory.mktemp("grid"), "sampler.window.size=1,2")
    stopping, told, over = Stopping(), [], threading.Event()

    def stop_soon() -> None:  # the whole run takes hardly longer than `execute` usually waits between two looks
        metrics = found[0].folder / "metrics.jsonl"
        while not (metrics.is_file() and metrics.read_text().count("\n") > 2) and not over.wait(0.01):
            pass
        stopping.asked = signal.SIGINT

    watching = threading.Thread(target=stop_soon)
    watching.start()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("flowrl.compare.execute.POLL_SECONDS", 0.01)
        execute(found, 1, lambda cell, what: told.append((str(cell), what)), stopping, start=Forked)
    over.set()
    watching.join()
    assert told == [("size=1, seed 0", "starts")] and not any(map(is_done, found))
    assert execute(found, 2, lambda cell, what: told.append((str(cell), what)), Stopping(), start=Forked) == {}
    assert told[1] == ("size=1, seed 0", "resumes") and len([what for _, what in told if what == "done"]) == 4
    return found


def test_a_stopped_grid_goes_on_and_its_runs_are_those_of_flowrl_run(finished: list[Cell], tmp_path: Path):
    assert all(map(is_done, finished))
    starts = json.loads((finished[0].folder / "run.json").read_text())["starts"]
    assert len(starts) == 2
    train("tiny_flow_grpo", [*SHORT, "sampler.window.size=1"], tmp_path / "alone")
    assert_same_run(finished[0].folder, tmp_path / "alone")


def test_what_is_done_is_not_run_again(finished: list[Cell]):
    def nothing(command: object, log: object) -> Forked:
        raise AssertionError("a finished run was started")

    assert execute(finished, 1, lambda cell, what: None, Stopping(), start=nothing) == {}


def test_forwards_are_those_that_ran(finished: list[Cell]):
    outcomes = collect.grid_outcomes(finished, {})
    assert [o.problem for o in outcomes] == [None] * 4
    # 2 prompts of 4, 4 steps, the first shared by a group: 2 + 3 * 8 rows drawn, and 2 + (size - 1) * 8 trained
    for one, trained in zip(outcomes[:2], (2, 10), strict=True):
        assert one.median("forwards/rollout") == 26
        assert one.median("forwards/train") <= trained  # rows without an advantage are skipped
        assert [m.iteration for m in one.points] == list(range(11))
        assert one.points[-1].calls > 26 * 2 and one.points[-1].seconds > 0


def test_drift_is_measured_once_and_vanishes_without_training(
    finished: list[Cell], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    run = finished[0].folder
    settings = drift.DriftSettings.of(finished[0].recipe, prompts=3, group=2)
    found = drift.measure_cached(run, settings)
    assert found["distance"] > 0 and found["kl"] > 0 and found["diversity"] != found["diversity_base"]
    with monkeypatch.context() as patch:
        patch.setattr(drift, "measure", lambda *_: pytest.fail("it was kept"))
        assert drift.measure_cached(run, settings) == found
    with monkeypatch.context() as patch:
        patch.setattr(drift, "load_weights", lambda policy, run: None)
        untrained = drift.measure(run, settings)
    assert untrained["distance"] == untrained["kl"] == 0
    assert untrained["diversity"] == untrained["diversity_base"] == found["diversity_base"]
    (run / drift.CACHE).write_text("{")  # half written
    assert drift.measure_cached(run, settings) == found


def test_a_run_that_fails_is_told_and_does_not_stop_the_others(tmp_path: Path):
    bad = Variant("bad", ("rewards.shapes={use: planted.broken}",))
    found = grid.make_cells(
        "tiny_flow_grpo", [*SHORT, "train.iterations=1"], [bad, Variant("good")], seeds=1, output=tmp_path
    )
    failed = execute(found, 1, lambda cell, what: None, Stopping(), start=Forked)
    assert list(failed) == [found[0].folder] and "colour" in failed[found[0].folder]
    assert "exit code 1" in failed[found[0].folder] and "seed-0.log" in failed[found[0].folder]
    outcomes = collect.grid_outcomes(found, failed)
    assert outcomes[0].problem == failed[found[0].folder] and outcomes[1].problem is None


def test_a_language_model_is_measured_without_pictures(tmp_path: Path):
    short = ["train.prompts=2", "train.group=4", "train.iterations=1", "train.lr=0.1", "eval.prompts=4"]
    train("tiny_lm_grpo", [*short, "generation.max_new_tokens=12"], tmp_path / "run")
    recipe = load(str(tmp_path / "run" / "recipe.yaml"))
    found = drift.measure_cached(tmp_path / "run", drift.DriftSettings.of(recipe, prompts=3, group=2))
    assert found["distance"] is None and found["kl"] > 0 and 0.5 <= found["diversity"] <= 1
    (one,) = collect.folder_outcomes([tmp_path / "run"])
    assert one.points[-1].calls > 0  # tokens


@pytest.mark.slow
def test_the_command_runs_its_grid_in_processes_of_its_own(tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "flowrl.cli",
        "compare",
        "tiny_flow_grpo",
        *SHORT,
        "--vary",
        "sampler.window.size=1,2",
    ]
    command += [
        "--seeds",
        "2",
        "--budget",
        "2s",
        "--evaluations",
        "3",
        "--output",
        str(tmp_path / "out"),
        "--jobs",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[3])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "shapes at 2." in done.stdout and "KL from base" in done.stdout
    assert (tmp_path / "out" / "compare.html").is_file() and (tmp_path / "out" / "concurrent").is_file()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.iterations=80"], "iteration 4 of 80, 5%, about 3.8 min left"),
        (["train.seconds=24"], "iteration 4, 50%, about 12 s left"),
    ],
)
def test_how_far_a_run_is_says_what_is_left(overrides: list[str], words: str, tmp_path: Path):
    cell = Cell("a", 0, load("tiny_flow_grpo", overrides), tmp_path)
    assert progress_of(cell) == "loading"
    lines = [{"kind": "train", "iteration": i, "time_rollout": 2.0, "time_train": 1.0} for i in range(1, 5)]
    lines.insert(0, {"kind": "heldout", "iteration": 0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert progress_of(cell) == words
