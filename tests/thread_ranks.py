"""Ranks that are threads of one process, for tests of what ranks do together without starting any."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class ThreadRank:
    """One of them; see `contracts.Ranks`."""

    gathered = 0

    def __init__(self, rank: int, size: int, wall: threading.Barrier, given: list[Any]):
        self.rank, self.size, self._wall, self._given = rank, size, wall, given

    def gather(self, value: T) -> list[T]:
        """What each rank gives."""
        self._given[self.rank] = value
        self._wall.wait()
        found = list(self._given)
        self._wall.wait()
        return found


def together(size: int, work: Callable[[ThreadRank], T]) -> list[T]:
    """What the work of each rank gives. Raises the error of the first that fails."""
    wall, given = threading.Barrier(size, timeout=60), [None] * size
    made: list[Any] = [None] * size
    failed: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            made[rank] = work(ThreadRank(rank, size, wall, given))
        except threading.BrokenBarrierError:
            pass  # another one has failed
        except BaseException as error:
            failed.append(error)
            wall.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return made
