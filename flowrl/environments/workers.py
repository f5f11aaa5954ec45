"""Calls beside the main thread, several at once, each with a deadline."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any


class LateError(TimeoutError):
    """A call that did not come back in time."""


class Workers:
    """Runs calls, at most `number` at once, and waits `deadline` seconds for each (None: as long as it takes).

    A thread cannot be stopped: a late call is left behind and another thread takes its place; it is a daemon, so that
    it keeps no process alive. A call that never lets another thread run cannot be late: such work belongs into a
    process of its own.
    """

    def __init__(self, number: int = 16, deadline: float | None = 60.0):
        self.number, self.deadline = number, deadline

    def __call__(self, calls: Sequence[Callable[[], Any]], weights: Sequence[int] | None = None) -> list[Any]:
        """What each call gave, in order, or the exception that it raised, which may be a LateError.

        weights: how many times the deadline each may take.
        """
        results: list[Any] = [None] * len(calls)
        done, began = [False] * len(calls), [0.0] * len(calls)
        changed, waiting, running = threading.Condition(), list(range(len(calls)))[::-1], set[int]()

        def work(i: int) -> None:
            try:
                given: Any = calls[i]()
            except BaseException as error:  # handed to whoever asked
                given = error
            with changed:
                if not done[i]:
                    results[i], done[i] = given, True
                    changed.notify()

        with changed:
            while waiting or running:
                while waiting and len(running) < self.number:
                    i = waiting.pop()
                    running.add(i)
                    began[i] = time.monotonic()
                    threading.Thread(target=work, args=(i,), name=f"environment {i}", daemon=True).start()
                ends = {i: self._end(began[i], 1 if weights is None else weights[i]) for i in running}
                first = min(ends.values())
                if not any(done[i] for i in running):
                    changed.wait(None if first == float("inf") else max(first - time.monotonic(), 0.0))
                now = time.monotonic()
                for i in [i for i in running if done[i] or now >= ends[i]]:
                    if not done[i]:
                        results[i], done[i] = LateError(f"no answer within {ends[i] - began[i]:g} s"), True
                    running.discard(i)
        return results

    def _end(self, began: float, weight: int) -> float:
        return float("inf") if self.deadline is None else began + self.deadline * max(weight, 1)
