"""Requests by their ids: a request that is sent again, because its answer was lost, gets the earlier reply."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from flowrl.untyped import JSON

REMEMBERED = 1024  # answers


class ConflictError(RuntimeError):
    """A different request was received under the same id."""


class RequestLedger:
    """The replies to the latest requests, and to those in progress."""

    def __init__(self, size: int = REMEMBERED):
        self._size = size
        self._replies: OrderedDict[str, tuple[str, asyncio.Task[dict[str, JSON]]]] = OrderedDict()

    async def once(self, name: str | None, digest: str, work: Callable[[], Awaitable[JSON]]) -> dict[str, JSON]:
        """The result of `work`, or its earlier result for this id; failures are forgotten. digest: of the body.

        The work continues if the caller is cancelled. Raises ConflictError for a known id with a different digest.
        """
        known = self._replies.get(name) if name is not None else None
        if known is not None and known[0] != digest:
            raise ConflictError("another request has used this id; an id is for sending the same request again")
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
