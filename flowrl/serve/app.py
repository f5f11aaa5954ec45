"""The HTTP side of a server of rewards: who may ask, how much, and what is answered."""

import asyncio
import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from flowrl import __version__
from flowrl.serve import health
from flowrl.serve.config import Config
from flowrl.serve.ledger import Conflict, Ledger
from flowrl.serve.pool import Full, Lost, Pool, TooSlow
from reward_models.parts.remote.protocol import JSON, REQUEST_ID, REWARDS, SCORE, TENSORS, VERSION

RETRY_AFTER = "1"  # seconds
FULL = "all workers are busy and the queue is full"
ID = re.compile(r"[\w-]{1,64}", re.ASCII)
SLOWEST = 2**16  # bytes a second that a body has to come at, on average
PATIENCE = 10.0  # seconds that it may take beyond that


class Refusal(Exception):
    """An answer other than scores."""

    def __init__(self, status: int, reason: str):
        self.status, self.reason = status, reason
        super().__init__(reason)


class Service:
    """What all requests share."""

    def __init__(self, config: Config, pool: Pool, token: str | None):
        self.config, self.pool, self.ledger = config, pool, Ledger()
        self._token = None if token is None else token.encode()
        self.counts: dict[str, int] = dict.fromkeys(("served", "samples", "refused", "busy", "failed"), 0)
        self.begun = time.time()
        self.held = 0  # bytes of bodies that are read, wait or are scored
        self._room = (config.serve.workers + config.serve.queue) * config.serve.max_bytes

    def knows(self, request: Request) -> bool:
        """Whether a request carries the token, if there is one; compared in a time that tells nothing of it."""
        if self._token is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        return hmac.compare_digest(given.strip().encode(), self._token) and scheme.lower() == "bearer"

    async def score(self, request: Request) -> dict[str, Any]:
        """The reply of a worker, or Refusal."""
        limits, kind = self.config.serve, request.headers.get("content-type", "").partition(";")[0].strip().lower()
        name = request.headers.get(REQUEST_ID)
        if name is not None and not ID.fullmatch(name):
            raise Refusal(422, f"header {REQUEST_ID}: accepted: up to 64 letters, digits, _ and -")
        if kind not in (JSON, TENSORS):
            raise Refusal(415, f"content type {kind[:80]!r}; accepted: {JSON} or {TENSORS}")
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced[:18]) > limits.max_bytes:
            with suppress(Refusal):  # read, within reason: see below
                await _read(request, 4 * limits.max_bytes, limits.timeout)
            raise Refusal(413, f"{announced[:18]} bytes; accepted: at most {limits.max_bytes} a request")
        if self.pool.full:
            # answered once it is read: a client that is still sending would see a broken connection instead
            await _read(request, limits.max_bytes, limits.timeout)
            raise Refusal(503, FULL)
        try:
            async with self._body(request) as (body, digest):  # one that is still on its way holds no place
                if self.pool.full:
                    raise Refusal(503, FULL)
                with self.pool.admitted():
                    reply = await self.ledger.once(name, kind + digest, lambda: self.pool.score(kind, body))
        except Full as error:
            raise Refusal(503, str(error)) from None
        except TooSlow as error:
            raise Refusal(504, str(error)) from None
        except Lost as error:
            raise Refusal(500, str(error)) from None
        except Conflict as error:
            raise Refusal(409, str(error)) from None
        if reply["status"] != 200:
            raise Refusal(reply["status"], reply["answer"]["error"])
        return reply["answer"]

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[tuple[bytes, str]]:
        """(body, its hash) of a request; within, it is held. Raises Refusal where there is no room for it."""
        limits, body, digest = self.config.serve, bytearray(), hashlib.sha256()

        def keep(chunk: bytes) -> None:
            if self.held + len(chunk) > self._room:
                raise Refusal(503, "the server holds as many bytes of requests as it may")
            self.held += len(chunk)
            body.extend(chunk)
            digest.update(chunk)

        try:
            await _read(request, limits.max_bytes, limits.timeout, keep)
            yield bytes(body), digest.hexdigest()
        finally:
            self.held -= len(body)

    def count(self, refusal: Refusal) -> None:
        """Notes a refusal under its kind."""
        self.counts["busy" if refusal.status == 503 else "failed" if refusal.status >= 500 else "refused"] += 1


async def _read(request: Request, limit: int, seconds: float, keep: Callable[[bytes], None] | None = None) -> None:
    """Reads a body and hands it over piece by piece. Raises Refusal where it is too long, late or slow.

    It has to be there within `seconds`, and at any time SLOWEST bytes a second of it, but for PATIENCE seconds.
    """
    chunks, length, begun = aiter(request.stream()), 0, time.monotonic()
    while True:
        left = min(seconds, PATIENCE + length / SLOWEST) - (time.monotonic() - begun)
        try:
            chunk = await asyncio.wait_for(anext(chunks), left)
        except StopAsyncIteration:
            return
        except (TimeoutError, asyncio.TimeoutError):
            late = f"the body was not there within {seconds:g} s, or came at less than {SLOWEST} bytes a second"
            raise Refusal(408, late) from None
        except ClientDisconnect:
            raise Refusal(400, "the client hung up") from None
        length += len(chunk)
        if length > limit:
            raise Refusal(413, f"more than {limit} bytes; accepted: at most {limit} a request")
        if keep is not None:
            keep(chunk)


def build(service: Service) -> FastAPI:
    """The application: scores, what there is, and health."""
    app = FastAPI(title="flowrl serve-rewards", docs_url=None, redoc_url=None, openapi_url=None)

    def answer(work: Callable[[Request], Awaitable[dict[str, Any]]]) -> Callable[[Request], Awaitable[Response]]:
        async def respond(request: Request) -> Response:
            try:
                if not service.knows(request):
                    raise Refusal(401, "missing or wrong token; send Authorization: Bearer TOKEN")
                return JSONResponse(await work(request))
            except Refusal as refusal:
                service.count(refusal)
                return _refused(refusal)

        return respond

    async def score(request: Request) -> dict[str, Any]:
        found = await service.score(request)
        service.counts["served"] += 1
        service.counts["samples"] += len(found["items"])
        return found

    async def rewards(request: Request) -> dict[str, Any]:
        limits = service.config.serve.model_dump(include={"max_bytes", "max_items", "max_pixels"})
        return {"version": VERSION, "flowrl": __version__, "rewards": service.pool.rewards, "limits": limits}

    async def state(request: Request) -> Response:
        if not (service.knows(request) or _near(request)):
            return _refused(Refusal(401, "missing or wrong token; send Authorization: Bearer TOKEN"))
        found = health.facts(service.config, service.pool, service.counts, service.begun)
        status = 200 if service.pool.ready else 503
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(health.page(found), status)
        return JSONResponse(found, status)

    app.add_api_route(SCORE, answer(score), methods=["POST"], response_model=None)
    app.add_api_route(REWARDS, answer(rewards), methods=["GET"], response_model=None)
    app.add_api_route("/health", state, methods=["GET"], response_model=None)
    app.add_exception_handler(HTTPException, _no_such)
    return app


async def _no_such(request: Request, error: Any) -> Response:
    """Of paths and methods that are not there."""
    return _refused(Refusal(error.status_code, f"{request.method} {request.url.path[:80]}: {error.detail}"))


def _refused(refusal: Refusal) -> Response:
    headers = {"Retry-After": RETRY_AFTER} if refusal.status == 503 else {}
    headers |= {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
    return JSONResponse({"version": VERSION, "error": refusal.reason}, refusal.status, headers)


def _near(request: Request) -> bool:
    """Whether a request comes from this machine."""
    return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
