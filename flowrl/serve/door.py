"""Who may hold a connection, and how long without asking anything: silence shuts nobody out."""

import asyncio
import ipaddress
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

PATIENCE = 10.0  # seconds in which the head of a request has to be there
HEAD = 2**16  # bytes that it may have
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Door:
    """The open connections: at most `each` of one address and `most` in all.

    One that comes when there are no more takes the place of the one that has been silent for longest; where all have
    a request under way it is asked to come again.
    """

    def __init__(self, each: int, most: int, patience: float = PATIENCE):
        self.each, self.most, self.patience = each, most, patience
        self._open: dict[Any, str] = {}  # connection -> address, the oldest first
        self._timers: dict[Any, asyncio.TimerHandle] = {}
        self._heard: dict[Any, int] = {}  # bytes of a head that is not complete

    def enter(self, connection: Any) -> None:
        """Takes in a connection, or sends it away."""
        address = _address(connection.transport)
        own = [other for other, where in self._open.items() if where == address]
        if len(own) >= self.each or len(self._open) >= self.most:
            of = own if len(own) >= self.each else list(self._open)
            silent = next((other for other in of if not under_way(other)), None)
            if silent is None:
                connection.transport.write(BUSY)
                connection.transport.close()
                return
            self._end(silent)
        self._open[connection] = address
        self._wait(connection)

    def heard(self, connection: Any, number: int) -> None:
        """Notes bytes that have come. A head that is too long, or too slow, ends the connection."""
        if connection not in self._open:
            return
        if under_way(connection):
            self._rest(connection)
            return
        self._heard[connection] = self._heard.get(connection, 0) + number
        if self._heard[connection] > HEAD:
            self._end(connection)
        elif connection not in self._timers:
            self._wait(connection)

    def leave(self, connection: Any) -> None:
        """Forgets a connection."""
        self._open.pop(connection, None)
        self._rest(connection)

    def _wait(self, connection: Any) -> None:
        loop = asyncio.get_running_loop()
        self._timers[connection] = loop.call_later(self.patience, self._late, connection)

    def _late(self, connection: Any) -> None:
        self._timers.pop(connection, None)
        if not under_way(connection):
            self._end(connection)

    def _rest(self, connection: Any) -> None:
        self._heard.pop(connection, None)
        if (timer := self._timers.pop(connection, None)) is not None:
            timer.cancel()

    def _end(self, connection: Any) -> None:
        self.leave(connection)
        connection.transport.abort()


def under_way(connection: Any) -> bool:
    """Whether the head of a request is there and its answer is not complete."""
    return connection.cycle is not None and not connection.cycle.response_complete


def guarded(door: Door) -> type[asyncio.Protocol]:
    """uvicorn's protocol of a connection, behind this door."""

    class Guarded(AutoHTTPProtocol):  # pyright: ignore[reportGeneralTypeIssues]
        """A connection that tells the door what happens."""

        def connection_made(self, transport: Any) -> None:
            """Goes in."""
            super().connection_made(transport)
            door.enter(self)

        def data_received(self, data: bytes) -> None:
            """Is heard, unless it is on its way out."""
            if not self.transport.is_closing():  # pyright: ignore[reportAttributeAccessIssue]
                super().data_received(data)
                door.heard(self, len(data))

        def connection_lost(self, exc: Exception | None) -> None:
            """Goes."""
            door.leave(self)
            super().connection_lost(exc)

    return Guarded


def _address(transport: Any) -> str:
    """Of whom a connection is: an IPv4 address, or the network of 64 bits that an IPv6 address lies in."""
    peer = transport.get_extra_info("peername")
    if not peer:
        return ""
    host = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    if host.version == 6 and host.ipv4_mapped is None:
        return str(ipaddress.ip_network((host, 64), strict=False))
    return str(host)
