"""Runs a grid's runs as processes of their own, several at once, and resumes those that were stopped."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flowrl.compare.grid import Cell, write_recipe
from flowrl.report.read import read_run
from flowrl.runs.stopping import Stopping
from flowrl.terminal import duration_text
from flowrl.timing import phases

POLL_SECONDS = 0.1  # between two checks of the processes
Report = Callable[[Cell, str], None]  # a run, and "starts", "resumes", "done" or why it ended early


class Process(Protocol):
    """The part of `subprocess.Popen` that is used here."""

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        ...

    def send_signal(self, number: int, /) -> None:
        """Sends it a signal."""
        ...

    def wait(self) -> int:
        """The exit code, once it has ended."""
        ...


def start_process(command: Sequence[str], log: Path) -> Process:
    """A process that runs the command and appends its output to the log.

    It has a session of its own: a Ctrl-C in the terminal reaches this process alone, which passes it on.
    """
    with log.open("ab") as file:
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )


@dataclass
class RunProcess:
    """A run's process."""

    cell: Cell
    process: Process


def is_done(cell: Cell) -> bool:
    """Whether a run has already finished."""
    return (cell.folder / "recipe.yaml").is_file() and read_run(cell.folder).finished


def execute(
    cells: Sequence[Cell],
    jobs: int,
    report: Report,
    stopping: Stopping,
    look: Callable[[], None] = lambda: None,
    start: Callable[[Sequence[str], Path], Process] = start_process,
) -> dict[Path, str]:
    """Runs what is not done yet, at most `jobs` at once; returns folder -> reason for each run that did not finish.

    look is called about once a second while runs are in progress.
    Raises Stopped after SIGINT or SIGTERM, once every process has saved its checkpoint and ended.
    """
    waiting = [cell for cell in cells if not is_done(cell)]
    running: list[RunProcess] = []
    failed: dict[Path, str] = {}
    looked = 0.0
    with stopping.listening(), _end_on_error(running):
        while waiting or running:
            stopping.check()
            while waiting and len(running) < jobs:
                running.append(_start_run(waiting.pop(0), report, start))
            for child in [c for c in running if c.process.poll() is not None]:
                running.remove(child)
                reason = _failure_reason(child)
                if reason is not None:
                    failed[child.cell.folder] = reason
                report(child.cell, reason or "done")
            if time.monotonic() - looked > 1:
                look()
                looked = time.monotonic()
            time.sleep(POLL_SECONDS if running else 0)
    return failed


def progress_of(cell: Cell) -> str:
    """How far a run has got: its iteration, the share that is done, and about how long the rest takes.

    The time is that of rollouts, scoring and training at their mean pace so far, without evaluations.
    """
    with contextlib.suppress(OSError, ValueError):
        lines = (cell.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        trained = [one for one in map(json.loads, lines) if one.get("kind") == "train"]
        spent = sum(value for one in trained for value in phases(one))
        train = cell.recipe.train
        share = len(trained) / train.iterations
        share = share if train.seconds is None else max(share, spent / train.seconds)
        number = len(trained) if train.seconds is not None else f"{len(trained)} of {train.iterations}"
        rest = f", about {duration_text(spent / share - spent)} left" if share else ""
        return f"iteration {number}, {min(share, 1):.0%}{rest}"
    return "loading"


@contextlib.contextmanager
def _end_on_error(running: Sequence[RunProcess]) -> Iterator[None]:
    """On an error or a signal, asks the processes that still run to save and end, and waits for them."""
    try:
        yield
    except BaseException:
        for child in running:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGINT)
        for child in running:
            child.process.wait()
        raise


def _start_run(cell: Cell, report: Report, start: Callable[[Sequence[str], Path], Process]) -> RunProcess:
    """Starts a run, or resumes it."""
    write_recipe(cell)
    begun = (cell.folder / "recipe.yaml").is_file()
    if not begun:
        _remove_empty(cell.folder)
    command = [sys.executable, "-m", "flowrl.cli", "run", str(cell.file)]
    command += [f"resume={cell.folder}"] if begun else []
    child = RunProcess(cell, start(command, cell.log))
    report(cell, "resumes" if begun else "starts")
    return child


def _remove_empty(folder: Path) -> None:
    """Removes the empty folders of a run that was killed before it wrote anything: a new start would refuse them."""
    for path in sorted(folder.rglob("*"), reverse=True):
        with contextlib.suppress(OSError):
            path.rmdir() if path.is_dir() else path.unlink() if path.name == ".lock" else None


def _failure_reason(child: RunProcess) -> str | None:
    """Why a process ended before its run was finished; None if it was finished."""
    code = child.process.wait()
    if code == 0 and is_done(child.cell):
        return None
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; the log is {child.cell.log}"
    text = child.cell.log.read_text(encoding="utf-8", errors="replace") if child.cell.log.is_file() else ""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).splitlines() if line.strip()]
    last = lines[-1].removeprefix("flowrl: ") if lines else "it printed nothing"
    return f"{last} (exit code {code}; the log is {child.cell.log})"


def share_threads(jobs: int) -> int | None:
    """CPU threads for each of several processes; None for a single one, which is not limited."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return None if jobs == 1 else max(1, cores // jobs)
