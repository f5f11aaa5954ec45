"""SIGINT and SIGTERM end a run where nothing is lost: at once, or once the iteration under way is done."""

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


class Left(RuntimeError):
    """Code of a user's own asked the process to end, with whatever code: an error, since the work is not done."""


@contextlib.contextmanager
def staying() -> Iterator[None]:
    """Within, no Python code of this process ends it on its own: `sys.exit` is the error Left, and `os._exit` as well.

    Processes that are forked meanwhile end as they like, and what calls the C library's _exit cannot be held.
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
        raise Left(f"the process was asked to end with code {error.code} before its work was done") from error
    finally:
        os._exit = end


class Stopping:
    """Whether a signal asks the run to end. A second one ends the process as it would without us."""

    def __init__(self, announce: Callable[[str], None] = lambda name: None):
        self.asked: int | None = None
        self._announce = announce
        self._before: dict[int, signal.Handlers | Callable | int | None] = {}

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within, signals are noted. Outside the main thread, where Python lets nobody listen, they are not."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            self._restore()

    def check(self) -> None:
        """Raises Stopped if a signal has come."""
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
