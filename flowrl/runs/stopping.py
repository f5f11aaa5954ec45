"""SIGINT and SIGTERM end a run without losing anything: at once, or when the current iteration is done."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """Raised inside the work of a run that was asked to stop."""

    def __init__(self, number: int):
        self.name = signal.Signals(number).name
        self.code = 128 + number
        super().__init__(self.name)


class EarlyExitError(RuntimeError):
    """User code asked the process to exit, with whatever code; an error, since the work is not done."""


@contextlib.contextmanager
def refuse_exit() -> Iterator[None]:
    """Prevents Python code from ending this process: `sys.exit` and `os._exit` raise EarlyExitError.

    Processes forked meanwhile are not affected, and calls of the C library's _exit cannot be prevented.
    """
    end, here = os._exit, os.getpid()

    def leave(status: int) -> NoReturn:
        if os.getpid() != here:
            end(status)
        raise SystemExit(status)

    os._exit = leave
    try:
        yield
    except SystemExit as error:
        raise EarlyExitError(
            f"the process was asked to exit with code {error.code} before its work was done"
        ) from error
    finally:
        os._exit = end


class Stopping:
    """Whether a signal has asked the run to end. A second signal has its usual effect."""

    def __init__(self, announce: Callable[[str], None] = lambda name: None):
        self.asked: int | None = None
        self._announce = announce
        self._before: dict[int, signal.Handlers | Callable | int | None] = {}

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listens for signals meanwhile; only in the main thread, as Python allows it nowhere else."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            self._restore()

    def check(self) -> None:
        """Raises Stopped if a signal was received."""
        if self.asked is not None:
            raise Stopped(self.asked)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        self._restore()
        self._announce(signal.Signals(number).name)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
