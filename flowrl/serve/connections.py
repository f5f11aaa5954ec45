"""Limits of open connections, and of how long one may stay silent: idle connections cannot lock others out."""

import asyncio
import ipaddress
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

Connection = Any  # uvicorn's protocol object, with `transport` and `cycle`
PATIENCE = 10.0  # seconds in which the head of a request must arrive
HEAD = 2**16  # bytes of a head, at most
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class ConnectionLimiter:
    """The open connections: at most `each` of one address and `most` in all.

    A new one beyond these limits replaces the one that has been idle for longest; if all have an open request, the new
    one is answered with 503.
    """

    def __init__(self, each: int, most: int, patience: float = PATIENCE):
        self.each, self.most, self.patience = each, most, patience
        self._open: dict[Connection, str] = {}  # connection -> address, the oldest first
        self._timers: dict[Connection, asyncio.TimerHandle] = {}
        self._heard: dict[Connection, int] = {}  # bytes of an incomplete head

    def enter(self, connection: Connection) -> None:
        """Admits a connection, or refuses it."""
        address = _address(connection.transport)
        own = [other for other, where in self._open.items() if where == address]
        if len(own) >= self.each or len(self._open) >= self.most:
            of = own if len(own) >= self.each else list(self._open)
            silent = next((other for other in of if not has_open_request(other)), None)
            if silent is None:
                connection.transport.write(BUSY)
                connection.transport.close()
                return
            self._end(silent)
        self._open[connection] = address
        self._wait(connection)

    def heard(self, connection: Connection, number: int) -> None:
        """Counts received bytes. A head that is too long, or too slow, ends the connection."""
        if connection not in self._open:
            return
        if has_open_request(connection):
            self._rest(connection)
            return
        self._heard[connection] = self._heard.get(connection, 0) + number
        if self._heard[connection] > HEAD:
            self._end(connection)
        elif connection not in self._timers:
            self._wait(connection)

    def leave(self, connection: Connection) -> None:
        """Forgets a connection."""
        self._open.pop(connection, None)
        self._rest(connection)

    def _wait(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        self._timers[connection] = loop.call_later(self.patience, self._late, connection)

    def _late(self, connection: Connection) -> None:
        self._timers.pop(connection, None)
        if not has_open_request(connection):
            self._end(connection)

    def _rest(self, connection: Connection) -> None:
        self._heard.pop(connection, None)
        if (timer := self._timers.pop(connection, None)) is not None:
            timer.cancel()

    def _end(self, connection: Connection) -> None:
        self.leave(connection)
        connection.transport.abort()


def has_open_request(connection: Connection) -> bool:
    """Whether a connection has received the head of a request and not sent the whole response."""
    return connection.cycle is not None and not connection.cycle.response_complete


def limited_protocol(limiter: ConnectionLimiter) -> type[asyncio.Protocol]:
    """uvicorn's connection protocol, subject to the limits."""

    class LimitedProtocol(AutoHTTPProtocol):  # pyright: ignore[reportGeneralTypeIssues]
        """A connection that reports to the limiter."""

        def connection_made(self, transport: Any) -> None:
            """Reports a new connection."""
            super().connection_made(transport)
            limiter.enter(self)

        def data_received(self, data: bytes) -> None:
            """Reports received bytes, unless the connection is closing."""
            if not self.transport.is_closing():  # pyright: ignore[reportAttributeAccessIssue]
                super().data_received(data)
                limiter.heard(self, len(data))

        def connection_lost(self, exc: Exception | None) -> None:
            """Reports a closed connection."""
            limiter.leave(self)
            super().connection_lost(exc)

    return LimitedProtocol


def _address(transport: Any) -> str:
    """The client of a connection: an IPv4 address, or the /64 network of an IPv6 address."""
    peer = transport.get_extra_info("peername")
    if not peer:
        return ""
    host = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    if host.version == 6 and host.ipv4_mapped is None:
        return str(ipaddress.ip_network((host, 64), strict=False))
    return str(host)
