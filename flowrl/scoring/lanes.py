"""A thread that runs calls one after another, so that they can be awaited for a limited time, or run in parallel."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet  # Python 3.10: not the built-in one
from typing import TypeVar

Result = TypeVar("Result")


class LateError(RuntimeError):
    """A call took longer than its limit, or could not start in that time because an earlier one had not finished."""


class Lane:
    """Calls in order, each with a time limit in seconds (None: no limit).

    A thread cannot be stopped: a late call keeps running, and those behind it wait for it within their own limits. The
    thread is a daemon, so that a call that never returns does not keep the process alive.
    """

    def __init__(self, name: str, limit: float | None = None):
        self.name, self.limit = name, limit
        self._work: queue.SimpleQueue[tuple[Future, Callable[[], object]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._begun: dict[Future, float] = {}

    def submit(self, call: Callable[[], Result]) -> "Future[Result]":
        """Queues a call for the thread; see `result`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"reward {self.name}", daemon=True)
            self._thread.start()
        future: Future[Result] = Future()
        self._work.put((future, call))
        return future

    def result(self, future: "Future[Result]") -> Result:
        """The call's result; raises its exception, or LateError once the limit has passed.

        The limit counts from the start of the call; a call that still waits for its turn may wait as long again, from
        now on.
        """
        if self.limit is None:
            return future.result()
        now = time.monotonic()
        while True:
            start = self._begun.get(future, now)
            try:
                return future.result(timeout=max(start + self.limit - time.monotonic(), 0.0))
            except NotYet:
                if future.done():
                    return future.result()
                if self._begun.get(future, now) == start:
                    future.cancel()
                    raise LateError(f"no answer within time_limit: {self.limit:g} s") from None

    def _run(self) -> None:
        while True:
            future, call = self._work.get()
            if not future.set_running_or_notify_cancel():
                continue
            self._begun[future] = time.monotonic()
            try:
                future.set_result(call())
            except BaseException as error:  # passed on to the caller of `result`
                future.set_exception(error)
            finally:
                self._begun.pop(future, None)
