"""Reward servers seen from a client: one is picked, asked, rested after a failure, and asked again.

The standard library's http.client does it, so that no extra is needed: a connection for each request (a kept one may
have been closed meanwhile, which cannot be told from a lost answer), no redirects, no proxies.
"""

import contextlib
import http.client
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

CONNECT = 10.0  # seconds
FIRST_REST, LONGEST_REST = 0.25, 30.0  # seconds
LARGEST_ANSWER = 64_000_000  # bytes
Result = TypeVar("Result")


class Refused(ValueError):
    """The server understood and will not: a wrong token, name, size or form. Asking again would not help."""


class Broken(RuntimeError):
    """No answer, or one that is none: the server is down, too slow, or something else."""


class Failed(RuntimeError):
    """The server works and could not score this request: it took too long, or its workers died of it."""


class Busy(RuntimeError):
    """The server asks to come again."""

    def __init__(self, reason: str, after: float):
        self.after = after
        super().__init__(reason)


@dataclass
class Server:
    """One server and how it has behaved."""

    url: str
    secure: bool
    host: str
    port: int
    path: str
    at_work: int = 0
    failures: int = 0
    rests_until: float = 0.0
    greeted: bool = False
    greeting: threading.Lock = field(default_factory=threading.Lock)


def server(url: str) -> Server:
    """The server at an address. Raises ValueError for one that is no plain http or https address."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except (ValueError, AttributeError):
        parts, port = urlsplit(""), 0
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain or not url.isascii():
        raise ValueError(f"url={url!r}: accepted is http://HOST:PORT or https://..., without user, token or query")
    return Server(url.rstrip("/"), parts.scheme == "https", parts.hostname, port, parts.path.rstrip("/"))


def exchange(
    to: Server, method: str, path: str, body: bytes, headers: Mapping[str, str], seconds: float
) -> tuple[int, float | None, bytes]:
    """(status, Retry-After in seconds, body) of an answer that is there within so many seconds. Raises Broken."""
    make = http.client.HTTPSConnection if to.secure else http.client.HTTPConnection
    connection = make(to.host, to.port, timeout=min(seconds, CONNECT))
    try:
        connection.connect()
        connection.sock.settimeout(seconds)
        # a server that drips byte by byte would never meet the socket's own limit
        timer = threading.Timer(seconds, _hang_up, [connection.sock])
        timer.daemon = True
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before the end
                connection.request(method, to.path + path, body=body or None, headers=dict(headers))
            response = connection.getresponse()
            data = response.read(LARGEST_ANSWER + 1)
        finally:
            timer.cancel()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Broken(f"{to.url} does not answer ({type(error).__name__}: {error})") from error
    finally:
        connection.close()
    if len(data) > LARGEST_ANSWER:
        raise Broken(f"{to.url} answers with more than {LARGEST_ANSWER} bytes")
    after = response.headers.get("Retry-After", "")
    return response.status, float(after) if after.isdigit() else None, data


def _hang_up(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


class Servers:
    """Spreads requests: to the one with the least to do, of those that are not resting after a failure."""

    def __init__(self, urls: Sequence[str], *, retries: int, patience: float):
        self.all = [server(url) for url in urls]
        self.retries, self.patience = retries, patience
        self._lock = threading.Lock()
        self._wait = time.sleep

    def ask(self, once: Callable[[Server], Result]) -> Result:
        """What `once` returns of some server.

        After Broken or Failed another one is asked, or the same after a rest, `retries` times in all; then the last
        error is raised. After Busy it is asked again, for `patience` seconds in all; then Failed is raised.
        """
        left, give_up = self.retries, time.monotonic() + self.patience
        while True:
            with self._picked() as picked:
                try:
                    result = once(picked)
                except Busy as busy:
                    if time.monotonic() + busy.after > give_up:
                        raise Failed(f"{busy}, for {self.patience:g} s") from busy
                    self._rest(picked, busy.after * random.uniform(1.0, 1.5))
                except Failed:
                    left -= 1
                    if left < 0:
                        raise
                except Broken:
                    self._failed(picked)
                    left -= 1
                    if left < 0:
                        raise
                else:
                    picked.failures = 0
                    return result

    @contextlib.contextmanager
    def _picked(self) -> Iterator[Server]:
        """The server to ask now; waits while all are resting."""
        with self._lock:
            now = time.monotonic()
            # one that has failed is tried by one request alone
            awake = [s for s in self.all if s.rests_until <= now and not (s.failures and s.at_work)]
            chosen = min(awake or self.all, key=lambda s: (s.rests_until if not awake else 0, s.at_work))
            chosen.at_work += 1
            rest = chosen.rests_until - now
        try:
            if rest > 0:
                self._wait(rest)
            yield chosen
        finally:
            with self._lock:
                chosen.at_work -= 1

    def _failed(self, broken: Server) -> None:
        with self._lock:
            if broken.rests_until > time.monotonic():
                return  # requests that were under way together fail together: that is one failure
            broken.failures += 1
            rest = min(FIRST_REST * 2 ** (broken.failures - 1), LONGEST_REST)
            broken.rests_until = time.monotonic() + rest * random.uniform(0.75, 1.25)

    def _rest(self, busy: Server, seconds: float) -> None:
        with self._lock:
            busy.rests_until = max(busy.rests_until, time.monotonic() + seconds)
