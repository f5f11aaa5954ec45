"""The board of ranks, in the store that they met at: which of them waits, which has failed, and who tells the user.

Of all ranks that fail, the first one tells why and the others end in silence. A thread of each rank sees to it that
none outlives the run: one that hangs cannot hear of anything, nor can one whose launcher has been killed.
"""

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from torch import distributed as dist

Tell = Callable[[BaseException], int]  # tells the user of an error and gives the exit code
LAST = 10.0  # seconds for the others to hear of a failure, and then to end
NAP = 5e-3  # seconds between two looks at the board, while one waits for others to hear
LOOK = 1.0  # seconds between two looks of the thread that ends a rank
FAILED, SPEAKS, HEARD, LEAVES = "failed", "speaks", "heard", "leaves"


class RankError(RuntimeError):
    """Another rank has failed, gone or not answered.

    reported: the exit code, where another rank tells the user why. gone: whether it cannot tell anyone itself. absent:
    how many ranks do not hear of this.
    """

    def __init__(self, text: str, reported: int | None = None, *, gone: bool = False, absent: int = 1):
        super().__init__(text)
        self.reported, self.gone, self.absent = reported, gone, absent


class Board:
    """What rank `rank` of `size` writes and reads; nothing here waits for a rank that hangs."""

    def __init__(self, store: dist.Store, rank: int, size: int):
        self.rank, self.size = rank, size
        self._store, self._ending = store, False

    def waits(self, number: int) -> None:
        """Says that this rank waits for the others in the operation of this number."""
        with contextlib.suppress(Exception):
            self._store.set(f"waits/{self.rank}", str(number))

    def hangs(self, number: int, waited: float) -> RankError:
        """The error that names the ranks that do not wait in this operation, so many seconds after this one."""
        absent: list[str] = []
        with contextlib.suppress(Exception):
            keys = {rank: f"waits/{rank}" for rank in range(self.size) if rank != self.rank}
            waiting = {rank for rank, key in keys.items() if self._store.check([key])}
            waiting = {rank for rank in waiting if int(self._store.get(keys[rank])) >= number}
            absent = [str(rank) for rank in keys if rank not in waiting]
        who = f"rank{'s' * (len(absent) > 1)} {', '.join(absent)}" if absent else "another rank"
        self._ending = True
        return RankError(
            f"{who} hangs, or is slower than the {waited:.0f} s that rank {self.rank} has waited (parallel.wait)",
            absent=len(absent) or 1,
        )

    def gone(self, reason: str) -> RankError:
        """The error of an operation that failed because of another rank."""
        self._ending = True
        return RankError(
            f"another rank has gone: it was killed, or its machine cannot be reached ({reason})", gone=True
        )

    def listen(self) -> None:
        """Raises RankError where another rank has failed."""
        failed = None
        with contextlib.suppress(Exception):
            failed = self._failed()
        if failed:
            self._ending = True
            raise RankError(failed[1], failed[0])

    def fail(self, error: BaseException, tell: Tell, patience: float) -> None:
        """Tells of an error of this rank: the user, where no other rank has, and then the others.

        Waits until all have heard and have saved what they could, so long as `patience` says (seconds): where the first
        process ends, a launcher ends the rest. Whether it is told, an error has its exit code in `reported`.
        """
        self._ending = True
        if getattr(error, "reported", None) is None:
            code = self._say(error, tell, patience)
            with contextlib.suppress(AttributeError, TypeError):  # not every class lets one
                error.reported = code  # pyright: ignore[reportAttributeAccessIssue]
        else:
            with contextlib.suppress(Exception):
                self._store.add(HEARD, 1)
        with contextlib.suppress(Exception):
            if self.rank == 0:  # the store may end with it
                self._until(lambda: self._store.check([LEAVES]), patience)

    def _say(self, error: BaseException, tell: Tell, patience: float) -> int:
        if isinstance(error, RankError):  # those that do not hear have had their time
            said, others, left = str(error), self.size - error.absent, LAST
        else:
            said, others, left = " ".join(f"{type(error).__name__}: {error}".split())[:500], self.size, patience
            said = f"rank {self.rank}: {said}"
        first = True
        with contextlib.suppress(Exception):
            first = self._store.compare_set(SPEAKS, "", str(self.rank)).decode() == str(self.rank)
        code = tell(error) if first else 1
        with contextlib.suppress(Exception):
            if first:
                self._store.set(FAILED, json.dumps([code, said, left + LAST]))
                self._store.add(HEARD, 1)
                self._until(lambda: self._store.add(HEARD, 0) >= others, patience)
                self._store.set(LEAVES, "")
            else:
                self._until(lambda: bool(self._failed()), patience)
                code = (self._failed() or (code,))[0]
                self._store.add(HEARD, 1)
        return code

    @staticmethod
    def _until(true: Callable[[], bool], patience: float) -> None:
        until = time.monotonic() + patience
        while not true() and time.monotonic() < until:
            time.sleep(NAP)

    @contextlib.contextmanager
    def guarded(self, wait: float) -> Iterator[None]:
        """Within, this process is ended by force where another rank has failed and it does not hear of that, or where
        its launcher has gone: it is asked to stop then, and has `wait` seconds for that."""
        over = threading.Event()
        thread = threading.Thread(target=self._guard, args=(over, wait), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(LAST)

    def _failed(self) -> tuple[int, str, float] | None:
        return tuple(json.loads(self._store.get(FAILED))) if self._store.check([FAILED]) else None

    def _guard(self, over: threading.Event, wait: float) -> None:
        launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        end = math.inf  # the moment at which this process is ended, unless it is on its way
        while not over.wait(LOOK):
            if launcher is not None and os.getppid() != launcher:
                launcher = None
                os.kill(os.getpid(), signal.SIGTERM)
            if end == math.inf:
                end = time.monotonic() + self._left(wait)
            elif time.monotonic() > end and not self._ending:
                os.kill(os.getpid(), signal.SIGKILL)

    def _left(self, wait: float) -> float:
        """Seconds that this rank has to end by itself."""
        try:
            failed = self._failed()
        except Exception:  # the store has gone, with rank 0 or the launcher
            return wait
        return math.inf if failed is None else failed[2]
