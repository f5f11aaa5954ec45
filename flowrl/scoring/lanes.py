"""A thread that runs calls one after another, so that they can be waited for a limited time, or done meanwhile."""

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet  # Python 3.10: not the built-in one
from typing import Any


class LateError(RuntimeError):
    """A call took longer than it may, or could not begin in that time because an earlier one is not done."""


class Lane:
    """Calls in order, each with a time limit in seconds (None: no limit).

    A thread cannot be stopped: a call that is late goes on, and those behind it wait for it within their own limits.
    The thread is a daemon, so that a call that never returns does not keep the process alive.
    """

    def __init__(self, name: str, limit: float | None = None):
        self.name, self.limit = name, limit
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._begun: dict[Future[Any], float] = {}

    def submit(self, call: Callable[[], Any]) -> "Future[Any]":
        """Lets the thread make this call when it comes to it; see `result`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"reward {self.name}", daemon=True)
            self._thread.start()
        future: Future[Any] = Future()
        self._work.put((future, call))
        return future

    def result(self, future: "Future[Any]") -> Any:
        """What the call returned, or its exception. Raises LateError once the limit has passed.

        The limit counts from the time that the call began; one that waits for its turn may wait as long again, from now
        on.
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
            except BaseException as error:  # handed over to whoever asked
                future.set_exception(error)
            finally:
                self._begun.pop(future, None)
