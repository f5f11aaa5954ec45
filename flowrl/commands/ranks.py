"""The ranks of `flowrl run`: how many there are to be, and how this process becomes one of them."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from flowrl.commands.failures import (
    EXIT_FAILED,
    LAUNCHED,
    refuse_several_processes,
    report_exception,
    report_lost_ranks,
)
from flowrl.names import UserError

if TYPE_CHECKING:
    from flowrl.contracts import Ranks
    from flowrl.recipe.schema import Recipe


def is_rank() -> bool:
    """Whether a launcher has started this process as one of several."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def leads() -> bool:
    """Whether this process is the one that speaks."""
    return not is_rank() or os.environ.get("RANK", "0") == "0"


def asked_ranks(option: int | None, key: int | None) -> int | None:
    """How many processes are asked for, None where nothing is said of it.

    Raises UserError where a launcher has started another number, or has not said who is who, or option and recipe
    differ.
    """
    if "WORLD_SIZE" not in os.environ:
        refuse_several_processes("run")  # of mpirun, each of which would be a complete run
    if option is not None and key is not None and option != key:
        raise UserError(f"--ranks: got {option}, but the recipe says parallel.ranks={key}; leave one of them out")
    asked, started = option or key, os.environ.get("WORLD_SIZE")
    if asked is not None and started is not None and started != str(asked):
        raise UserError(
            f"parallel.ranks: {asked} are asked for, but the launcher has started {started}; give both the same number"
        )
    return None if asked == 1 and started is None else asked


def check_before_launch(recipe: "Recipe", number: int) -> None:
    """Raises UserError for what each of so many ranks would tell: prompts that are not there, or do not fit."""
    from flowrl.reading.inputs import read_prompts
    from flowrl.recipe.checks.parallel import check_ranks

    if (error := next(check_ranks(recipe, number), None)) is not None:
        raise error
    read_prompts(recipe)


@contextlib.contextmanager
def joined(wait: float) -> "Iterator[Ranks]":
    """The ranks that this process belongs to, by itself where no launcher has started others."""
    if not is_rank():
        from flowrl.contracts import ALONE

        yield ALONE
        return
    from flowrl.engines.ranks import ProcessRanks

    def tell(error: BaseException) -> int:
        if not isinstance(error, Exception):
            return EXIT_FAILED
        return report_exception(error, sys.argv[1:], "--traceback" in sys.argv, os.environ["RANK"])

    ranks = ProcessRanks(wait)
    with ranks.together(tell):
        yield ranks


def launched(number: int, arguments: Sequence[str]) -> int:
    """Runs `flowrl` with these arguments in so many processes of this machine; returns the exit code."""
    from flowrl.engines.launch import launch

    os.environ[LAUNCHED] = "1"
    return report_lost_ranks(launch(number, arguments))
