"""What a user sees of an exception: one line and an exit code, and for a bug a file with the traceback.

2: wrong input. 1: a reward failed, or memory ran out. 70 (EX_SOFTWARE): a bug in flowrl or in a library that it called,
with a file for a bug report.
"""

import errno
import importlib.metadata
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence

import typer

from flowrl import __version__
from flowrl.names import UserError

EXIT_USER_ERROR, EXIT_FAILED, EXIT_FAULT = 2, 1, 70
# of scoring.scorer, runs.stopping, runs.saving and engines.client: by name, since importing them would load torch
ENDING_ERRORS = ("RewardError", "EarlyExitError", "DivergedError", "EngineError")
EXIT_GONE = 75  # of a rank that another one has left, whose launcher says how (EX_TEMPFAIL)
LAUNCHED = "FLOWRL_LAUNCHED"  # is set where `flowrl run --ranks` has started this process
OTHERS_SPEAK = 10.0  # seconds in which a launcher ends this rank because of another one that has told the same
TRACEBACK_VARIABLE = "FLOWRL_TRACEBACK"  # any value but 0 shows tracebacks, as --traceback does
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "pydantic", "typer")


def report_exception(error: Exception, arguments: Sequence[str], whole: bool = False, rank: str | None = None) -> int:
    """Prints an exception's line on standard error, after the traceback if `whole`; returns the exit code.

    rank: the one that tells of it for all of them. What ranks find before they have met, such as a mistake in the
    recipe, the first one tells. An error that has been told of (`reported`) is not told again.
    """
    if (told := getattr(error, "reported", None)) is not None:
        return told
    kind, text = type(error).__name__, one_line(error)
    if kind == "RankError":
        if getattr(error, "gone", False) and LAUNCHED in os.environ:
            return EXIT_GONE
        return _print_line(text, EXIT_FAILED)
    if rank is None and os.environ.get("WORLD_SIZE", "1") != "1" and (own := os.environ.get("RANK", "0")) != "0":
        time.sleep(OTHERS_SPEAK * (1 + (os.environ.get("LOCAL_RANK", "0") != "0")))
        rank = own  # rank 0 was well
    where = "" if rank is None else f"rank {rank}: "
    whole = whole or os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0")
    if whole:
        traceback.print_exception(error)
    if isinstance(error, UserError):
        return _print_line(where + text, EXIT_USER_ERROR)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        name = str(error.filename or text)
        problem = f"{name[:60]}...: a name of {len(name)} characters is too long for a file name; shorten it"
        return _print_line(where + problem, EXIT_USER_ERROR)
    if kind in ENDING_ERRORS:
        return _print_line(where + text, EXIT_FAILED)
    report = "its traceback is above" if whole else _write_bug_report(error, arguments)
    if kind == "OutOfMemoryError" or isinstance(error, MemoryError):
        usual = "lower train.micro_batch and train.rollout_batch, or set train.gradient_checkpointing=true"
        remedy = getattr(error, "remedy", usual)  # of runs.out_of_memory
        return _print_line(f"{where}out of memory ({text[:160]}); {remedy}; {report}", EXIT_FAILED)
    problem = f"{kind}: {text[:200] or 'no text'}; this is a bug without a message of its own: {report}"
    return _print_line(where + problem, EXIT_FAULT)


def report_lost_ranks(failed: Mapping[int, int]) -> int:
    """Says which rank was killed, as it could not itself; returns the exit code for that of a launcher.

    failed: the exit codes of ranks that a launcher has seen fail, the first one first; below 0 those of signals.
    """
    rank, code = next(iter(sorted(failed.items(), key=lambda one: one[1] == EXIT_GONE)), (0, 0))
    if code in (0, EXIT_USER_ERROR, EXIT_FAILED, EXIT_FAULT) or code > 128:
        return code
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    again = "--resume goes on from its last checkpoint"
    typer.echo(f"flowrl: rank {rank} {how}, and the run with it; {again}", err=True)
    return code if code > 0 else 128 - code


def one_line(error: BaseException) -> str:
    """The text of an exception, in one line that every terminal can show."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # a third party's __str__ may itself be broken
        text = "its text cannot be shown"
    return text.encode("utf-8", "backslashreplace").decode()


def _print_line(text: str, code: int) -> int:
    typer.echo(f"flowrl: {text}", err=True)
    return code


def _write_bug_report(error: Exception, arguments: Sequence[str]) -> str:
    """Writes the bug report to a file and says where; if none can be written, prints the traceback."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="flowrl-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(bug_report(error, arguments))
    except OSError:
        traceback.print_exception(error)
        return "no file could be written, so its traceback is above"
    return f"{file.name} has what a bug report needs (read it before you send it); --traceback shows it here"


def bug_report(error: Exception, arguments: Sequence[str]) -> str:
    """Command, versions and traceback, without environment variables."""
    versions = [f"flowrl {__version__}", f"python {platform.python_version()}", platform.platform()]
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} is not installed")
    command = shlex.join(["flowrl", *arguments])
    return "\n".join([command, *versions, "", "".join(traceback.format_exception(error))])


def refuse_several_processes(command: str | None) -> None:
    """Raises UserError if a launcher such as torchrun started this process as one of several."""
    size = next((v for v in map(os.environ.get, ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")) if v), "1")
    if size.isdecimal() and int(size) > 1 and "--help" not in sys.argv:
        raise UserError(
            f"{command}: started as one of {size} processes, each of which would be a complete run; start it "
            "once, without torchrun, accelerate launch or mpirun (training runs on one device; rewards.NAME.device "
            "puts a reward on another)"
        )


def refuse_non_utf8(arguments: Sequence[str]) -> None:
    """Raises UserError for an argument that is not UTF-8 text: a recipe or a page could not hold it."""
    for argument in arguments:
        if argument.encode("utf-8", "replace").decode() != argument:
            raise UserError(f"{argument!r}: is not UTF-8 text; rename the file, or write it as UTF-8")
