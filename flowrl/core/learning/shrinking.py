"""Micro-batches that become smaller when memory runs out, and stay so."""

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from flowrl.contracts import ALONE, Ranks

T = TypeVar("T")


class MicroBatch:
    """The rows that a training forward holds at once, all at first, halved whenever they do not fit.

    What was halved in a run is part of its checkpoint: a resumed one does not try again.
    """

    def __init__(self):
        self.rows: int | None = None  # all

    def __call__(
        self, work: Callable[[int | None], T], number: int, undo: Callable[[], None], ranks: Ranks = ALONE
    ) -> T:
        """What `work` gives for so many of `number` rows at once; undo: takes back what a failed one has left.

        ranks: those that do it at once, each with a number of its own; `work` does not wait for the others. Where
        memory runs out on one of them, all begin anew. Raises torch.OutOfMemoryError where one row does not fit.
        """
        while True:
            found, lack = None, ""
            try:
                found = work(self.rows)
            except torch.OutOfMemoryError as error:
                if ranks.size == 1 and min(number, self.rows or number) <= 1:
                    raise
                lack = str(error) or "out of memory"
            # beyond the handler, where nothing holds the frames of what failed, and their tensors
            told = ranks.gather((lack, number))
            if not any(lack for lack, _ in told):
                return found  # pyright: ignore[reportReturnType] - the work has given it
            most = max(number for _, number in told)
            at_once = min(most, self.rows or most)
            if at_once <= 1:
                raise torch.OutOfMemoryError(next(f"rank {i}: {lack}" for i, (lack, _) in enumerate(told) if lack))
            found = None
            undo()
            self.rows = at_once // 2
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def state_dict(self) -> dict[str, Any]:
        """The rows of now."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with saved rows."""
        self.rows = state["rows"]
