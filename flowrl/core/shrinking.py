"""Micro-batches that become smaller when memory runs out, and stay so."""

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class MicroBatch:
    """The rows that a training forward holds at once (None: all), halved whenever they do not fit.

    What was halved in a run is part of its checkpoint: a resumed one does not try again.
    """

    def __init__(self, rows: int | None = None):
        self.rows = rows

    def __call__(self, work: Callable[[int | None], T], number: int, undo: Callable[[], None]) -> T:
        """What `work` gives for so many of `number` rows at once; undo: takes back what a failed one has left.

        Raises torch.OutOfMemoryError where one row does not fit.
        """
        while True:
            try:
                return work(self.rows)
            except torch.OutOfMemoryError:
                at_once = min(number, self.rows or number)
                if at_once <= 1:
                    raise
            # beyond the handler, where nothing holds the frames of what failed, and their tensors
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
