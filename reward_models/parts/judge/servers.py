"""Reward servers from a client's side: one is picked, asked, left to rest after a failure, and asked again.

This uses the standard library's http.client, so that no extra is needed: one connection per request (a kept one may
have been closed in the meantime, which looks the same as a lost answer), no redirects, no proxies.
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


class ServerRefusedError(ValueError):
    """The server understood and refuses: a wrong token, name, size or form. Asking again would not help."""


class ServerUnavailableError(RuntimeError):
    """No answer, or an unusable one: the server is down, too slow, or not a reward server."""


class ScoringFailedError(RuntimeError):
    """The server works but could not score this request: it took too long, or its workers died of it."""


class ServerBusyError(RuntimeError):
    """The server asks to try again later."""

    def __init__(self, reason: str, after: float):
        self.after = after
        super().__init__(reason)


@dataclass
class RewardServer:
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


def server(url: str) -> RewardServer:
    """The server at an address. Raises ValueError for anything but a plain http or https address."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except (ValueError, AttributeError):
        parts, port = urlsplit(""), 0
    plain = not (parts.username or parts.password or parts.query or parts.fragment)
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain or not url.isascii():
        raise ValueError(f"url={url!r}: accepted is http://HOST:PORT or https://..., without user, token or query")
    return RewardServer(url.rstrip("/"), parts.scheme == "https", parts.hostname, port, parts.path.rstrip("/"))


def exchange(
    to: RewardServer, method: str, path: str, body: bytes, headers: Mapping[str, str], seconds: float
) -> tuple[int, float | None, bytes]:
    """(status, Retry-After in seconds, body) of an answer within so many seconds. Raises ServerUnavailableError."""
    make = http.client.HTTPSConnection if to.secure else http.client.HTTPConnection
    connection = make(to.host, to.port, timeout=min(seconds, CONNECT))
    try:
        connection.connect()
        connection.sock.settimeout(seconds)
        # a server that sends byte by byte would never reach the socket's own limit
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
        raise ServerUnavailableError(f"{to.url} does not answer ({type(error).__name__}: {error})") from error
    finally:
        connection.close()
    if len(data) > LARGEST_ANSWER:
        raise ServerUnavailableError(f"{to.url} answers with more than {LARGEST_ANSWER} bytes")
    after = response.headers.get("Retry-After", "")
    return response.status, float(after) if after.isdigit() else None, data


def _hang_up(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


class Servers:
    """Spreads requests: each goes to the least busy of the servers that are not resting after a failure."""

    def __init__(self, urls: Sequence[str], *, retries: int, patience: float):
        self.all = [server(url) for url in urls]
        self.retries, self.patience = retries, patience
        self._lock = threading.Lock()
        self._wait = time.sleep

    def ask(self, once: Callable[[RewardServer], Result]) -> Result:
        """The result of `once` for some server.

        After ServerUnavailableError or ScoringFailedError another one is asked, or the same after a rest, `retries`
        times in all; then the last error is raised. After ServerBusyError it is asked again, for `patience` seconds in
        all; then ScoringFailedError is raised.
        """
        left, give_up = self.retries, time.monotonic() + self.patience
        while True:
            with self._pick() as picked:
                try:
                    result = once(picked)
                except ServerBusyError as busy:
                    if time.monotonic() + busy.after > give_up:
                        raise ScoringFailedError(f"{busy}, for {self.patience:g} s") from busy
                    self._rest(picked, busy.after * random.uniform(1.0, 1.5))
                except ScoringFailedError:
                    left -= 1
                    if left < 0:
                        raise
                except ServerUnavailableError:
                    self._note_failure(picked)
                    left -= 1
                    if left < 0:
                        raise
                else:
                    picked.failures = 0
                    return result

    @contextlib.contextmanager
    def _pick(self) -> Iterator[RewardServer]:
        """The server to ask next; waits while all are resting."""
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

    def _note_failure(self, broken: RewardServer) -> None:
        with self._lock:
            if broken.rests_until > time.monotonic():
                return  # requests in flight at the same time fail together: that is one failure
            broken.failures += 1
            rest = min(FIRST_REST * 2 ** (broken.failures - 1), LONGEST_REST)
            broken.rests_until = time.monotonic() + rest * random.uniform(0.75, 1.25)

    def _rest(self, busy: RewardServer, seconds: float) -> None:
        with self._lock:
            busy.rests_until = max(busy.rests_until, time.monotonic() + seconds)
