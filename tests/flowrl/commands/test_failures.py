"""Whatever goes wrong in a command is one line and an exit code; a fault leaves a file for a bug report."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cli_support import call
from flowrl import __version__
from flowrl.commands import failures
from flowrl.commands.failures import LAUNCHED
from flowrl.commands.ranks import launched
from flowrl.names import UserError
from flowrl.scoring.scorer import RewardError


class Mute(RuntimeError):
    def __str__(self) -> str:
        raise ValueError("no text")


class OutOfMemoryError(RuntimeError):  # the name of torch's
    pass


def failing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException) -> None:
    """Reading a recipe raises this; reports go to tmp_path."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("flowrl.recipe.load.load", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("a: b\nc"), 2, "flowrl: a: b c"),
        (RewardError("r failed\n\nhere"), 1, "flowrl: r failed here"),
        (KeyError("std"), 70, "KeyError: 'std'"),
        (RecursionError(), 70, "RecursionError: no text"),
        (Mute(), 70, "its text cannot be shown"),
        (RuntimeError("\ud800 [/red] \x1b"), 70, r"\ud800 [/red]"),
        (OutOfMemoryError("tried to allocate 3 GiB"), 1, "train.micro_batch"),
        (MemoryError(), 1, "train.micro_batch"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_exception_is_one_line(error, code, words, tmp_path, capsys, monkeypatch):
    failing(monkeypatch, tmp_path, error)
    found, _, text = call(capsys, monkeypatch, "run", "tiny_flow_grpo", "train.lr=1e-4")
    assert found == code and words in text and len(text.splitlines()) == 1 and "Traceback" not in text
    reports = list(tmp_path.iterdir())
    if isinstance(error, UserError | RewardError):
        assert not reports
        return
    assert [str(p) for p in reports] == re.findall(r"\S+\.txt", text)
    kept = reports[0].read_text(encoding="utf-8")
    assert kept.startswith("flowrl run tiny_flow_grpo train.lr=1e-4\n") and f"flowrl {__version__}" in kept
    assert "torch " in kept and "Traceback (most recent call last)" in kept and type(error).__name__ in kept


@pytest.mark.parametrize("where", ["option", "variable"])
def test_the_traceback_is_shown_where_asked_for(where, tmp_path, capsys, monkeypatch):
    failing(monkeypatch, tmp_path, KeyError("std"))
    if where == "variable":
        monkeypatch.setenv("FLOWRL_TRACEBACK", "1")
    code, _, text = call(capsys, monkeypatch, "run", "tiny_flow_grpo", *(["--traceback"] if where == "option" else []))
    assert code == 70 and "Traceback (most recent call last)" in text and "its traceback is above" in text
    assert not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written_goes_to_the_screen(tmp_path, capsys, monkeypatch):
    failing(monkeypatch, tmp_path / "nowhere", KeyError("std"))
    code, _, text = call(capsys, monkeypatch, "run", "tiny_flow_grpo")
    assert code == 70 and "Traceback (most recent call last)" in text and "KeyError: 'std'" in text


@pytest.mark.parametrize("command", ["check", "eval", "sample", "scan", "compare", "export", "world"])
@pytest.mark.parametrize("variable", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_one_of_several_processes_is_refused(command, variable, capsys, monkeypatch):
    monkeypatch.setenv(variable, "4")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setattr(failures, "OTHERS_SPEAK", 0.0)
    monkeypatch.setattr("flowrl.recipe.load.load", lambda *_: pytest.fail("began"))
    code, _, text = call(capsys, monkeypatch, command, "build" if command == "world" else "tiny_flow_grpo")
    assert code == 2 and len(text.splitlines()) == 1 and "one of 4 processes" in text and "torchrun" in text


def test_a_run_is_one_of_several_processes_only_where_it_knows_which(capsys, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    code, _, text = call(capsys, monkeypatch, "run", "tiny_flow_grpo")
    assert code == 2 and len(text.splitlines()) == 1 and "one of 4 processes" in text


def test_ranks_are_as_many_as_are_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    code, _, text = call(capsys, monkeypatch, "run", "tiny_flow_grpo", "--ranks", "2")
    assert code == 2 and "parallel.ranks: 2 are asked for, but the launcher has started 4" in text
    code, _, text = call(capsys, monkeypatch, "run", "tiny_flow_grpo", "--ranks", "2", "parallel.ranks=4")
    assert code == 2 and "the recipe says parallel.ranks=4" in text


def test_no_rank_is_started_for_what_each_would_refuse(capsys, monkeypatch):
    monkeypatch.setenv(LAUNCHED, "")
    monkeypatch.setattr("flowrl.engines.launch.launch", lambda *_: {1: 70, 0: 1})
    code, _, text = call(capsys, monkeypatch, "run", "wan14_8x80gb")
    assert code == 2 and len(text.strip().splitlines()) == 1 and "pickscore: not here, and not shipped" in text
    code, _, text = call(
        capsys, monkeypatch, "run", "tiny_flow_grpo", "parallel={kind: fsdp, ranks: 4}", "train.prompts=3"
    )
    assert code == 2 and len(text.strip().splitlines()) == 1 and "train.prompts: got 3, but 4 ranks" in text
    code, _, _ = call(capsys, monkeypatch, "run", "tiny_flow_grpo", "--ranks", "2")
    assert code == 70


def test_a_rank_that_was_killed_is_named_by_its_launcher(capsys, monkeypatch):
    """The others cannot know how it went; what a rank has said itself is not said again."""
    monkeypatch.setenv(LAUNCHED, "")  # as it is again behind this
    for failed, code, said in (
        ({0: 75, 2: -9}, 137, "flowrl: rank 2 was killed by SIGKILL, and the run with it; --resume goes on"),
        ({1: 3, 0: 75}, 3, "flowrl: rank 1 ended with exit code 3"),
        ({1: 2, 0: 2}, 2, ""),
        ({0: 143, 1: 143}, 143, ""),
        ({}, 0, ""),
    ):
        monkeypatch.setattr("flowrl.engines.launch.launch", lambda *_, failed=failed: failed)
        assert launched(2, ["run"]) == code
        text = capsys.readouterr().err
        assert text.startswith(said) and len(text.splitlines()) == (said != "")


@pytest.mark.parametrize(("rank", "local", "waits"), [("0", "0", []), ("3", "0", [10.0]), ("3", "3", [20.0])])
def test_what_all_ranks_find_before_they_meet_the_first_one_tells(rank, local, waits, capsys, monkeypatch):
    """Its launcher ends the others meanwhile; where it was well, as on a machine of its own, they tell it too."""
    for name, value in (("WORLD_SIZE", "4"), ("RANK", rank), ("LOCAL_RANK", local)):
        monkeypatch.setenv(name, value)
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    code, _, text = call(capsys, monkeypatch, "run", "tiny_flow_grpo", "trian.lr=1")
    assert code == 2 and waited == waits and len(text.splitlines()) == 1
    assert text.startswith("flowrl: trian" if rank == "0" else "flowrl: rank 3: trian")


def test_a_launcher_of_one_process_is_none(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    code, out, _ = call(capsys, monkeypatch, "run", "tiny_flow_grpo", "--dry-run")
    assert code == 0 and "optimizer step" in out


def test_python_runs_the_package():
    command = [sys.executable, "-m", "flowrl", "run", "tiny_flow_grpo", "trian.lr=1"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2 and "did you mean 'train'" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [["run", "tiny_flow_grpo", "output=a\udcff"], ["sample", "tiny_flow_grpo", "\udce9"]]
)
def test_an_argument_that_is_no_text_is_one_line(arguments, capsys, monkeypatch):
    code, _, text = call(capsys, monkeypatch, *arguments)
    assert code == 2 and len(text.splitlines()) == 1 and "not UTF-8 text" in text and "\\udc" in text
