"""Requests by their ids: one that comes again, because its answer was lost, meets the work already done."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any

REMEMBERED = 1024  # answers


class Conflict(RuntimeError):
    """Another request has come under the same id."""


class Ledger:
    """The replies of the latest requests, and of those under way."""

    def __init__(self, size: int = REMEMBERED):
        self._size = size
        self._replies: OrderedDict[str, tuple[str, asyncio.Task[dict[str, Any]]]] = OrderedDict()

    async def once(self, name: str | None, digest: str, work: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
        """What `work` returns, or returned before for this id; a failure is forgotten. digest tells bodies apart.

        The work goes on where the one who waits for it is gone. Raises Conflict for an id with another digest.
        """
        known = self._replies.get(name) if name is not None else None
        if known is not None and known[0] != digest:
            raise Conflict("another request has come under this id; ids are for sending the same one again")
        task = known[1] if known is not None else asyncio.ensure_future(work())
        if name is not None and known is None:
            self._replies[name] = digest, task
        if known is None:
            task.add_done_callback(lambda done: self._settle(name, done))
        return await asyncio.shield(task)

    def _settle(self, name: str | None, done: asyncio.Task) -> None:
        if done.cancelled() or done.exception() is not None:
            if name is not None:
                self._replies.pop(name, None)
        settled = [name for name, (_, task) in self._replies.items() if task.done()]
        for name in settled[: max(0, len(settled) - self._size)]:
            del self._replies[name]
