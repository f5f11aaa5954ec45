"""What a user sees of an exception: one line and an exit code, and a file with the traceback where it is a fault.

2: what the user gave is wrong. 1: a reward failed, or memory ran out. 70 (EX_SOFTWARE): a fault of flowrl or of what it
called, for a bug report.
"""

import errno
import importlib.metadata
import os
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence

import typer

from flowrl import __version__
from flowrl.names import UserError

WRONG, FAILED, FAULT = 2, 1, 70
ENDED = ("RewardError", "Left", "Diverged")  # of scoring, stopping and guard: comparing classes would load torch
VARIABLE = "FLOWRL_TRACEBACK"  # any value but 0 shows tracebacks, as --traceback does
PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "pydantic", "typer")


def tell(error: Exception, arguments: Sequence[str], whole: bool = False) -> int:
    """Prints the line of an exception on standard error, below the whole traceback where asked for; its exit code."""
    whole = whole or os.environ.get(VARIABLE, "0") not in ("", "0")
    if whole:
        traceback.print_exception(error)
    kind = type(error).__name__
    text = one_line(error)
    if isinstance(error, UserError):
        return _say(text, WRONG)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        name = str(error.filename or text)
        return _say(f"{name[:60]}...: a name of {len(name)} characters is too long for a file; shorten it", WRONG)
    if kind in ENDED:
        return _say(text, FAILED)
    where = "its traceback is above" if whole else _kept(error, arguments)
    if kind == "OutOfMemoryError" or isinstance(error, MemoryError):
        remedy = "lower train.micro_batch and train.rollout_batch, or set train.gradient_checkpointing=true"
        return _say(f"memory ran out ({text[:160]}); {remedy}; {where}", FAILED)
    return _say(f"{kind}: {text[:200] or 'no text'}; a clear message is missing here: {where}", FAULT)


def one_line(error: BaseException) -> str:
    """What an exception says, in one line that every terminal can show."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # a third party's __str__ may itself be what is broken
        text = "its text cannot be shown"
    return text.encode("utf-8", "backslashreplace").decode()


def _say(text: str, code: int) -> int:
    typer.echo(f"flowrl: {text}", err=True)
    return code


def _kept(error: Exception, arguments: Sequence[str]) -> str:
    """Where the report went, in words; where no file can be written, the traceback goes to the screen."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="flowrl-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(report(error, arguments))
    except OSError:
        traceback.print_exception(error)
        return "no file could be written, so its traceback is above"
    return f"{file.name} has what a bug report needs (read it before you send it), --traceback shows it here"


def report(error: Exception, arguments: Sequence[str]) -> str:
    """Command, versions and traceback. Nothing of the environment's variables."""
    versions = [f"flowrl {__version__}", f"python {platform.python_version()}", platform.platform()]
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} is not installed")
    command = shlex.join(["flowrl", *arguments])
    return "\n".join([command, *versions, "", "".join(traceback.format_exception(error))])


def refuse_ranks(command: str | None) -> None:
    """Raises UserError where a launcher such as torchrun started this process as one of several."""
    size = next((v for v in map(os.environ.get, ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")) if v), "1")
    if size.isdecimal() and int(size) > 1 and "--help" not in sys.argv:
        raise UserError(
            f"{command}: started as one of {size} processes, each of which would be a whole run of its own; start it "
            "once, without torchrun, accelerate launch or mpirun (training runs on one device; rewards.NAME.device "
            "puts a reward on another)"
        )


def refuse_bytes(arguments: Sequence[str]) -> None:
    """Raises UserError for an argument that is no UTF-8 text: no recipe and no page of a run could hold it."""
    for argument in arguments:
        if argument.encode("utf-8", "replace").decode() != argument:
            raise UserError(f"{argument!r}: is no UTF-8 text; rename what it names, or write it as UTF-8")
