"""The HTTP side of a reward server: who may send requests, their limits, and the responses."""

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
from flowrl.serve.config import ServerConfig
from flowrl.serve.ledger import ConflictError, RequestLedger
from flowrl.serve.pool import QueueFullError, ScoringTimeoutError, WorkerPool, WorkersLostError
from reward_models.parts.remote.protocol import JSON, REQUEST_ID, REWARDS, SCORE, TENSORS, VERSION

RETRY_AFTER = "1"  # seconds
FULL = "all workers are busy and the queue is full"
ID = re.compile(r"[\w-]{1,64}", re.ASCII)
MIN_BYTES_PER_SECOND = 2**16  # average rate of a body
PATIENCE = 10.0  # seconds that a body may take beyond that


class RefusedError(Exception):
    """The request is answered with an HTTP error instead of scores."""

    def __init__(self, status: int, reason: str):
        self.status, self.reason = status, reason
        super().__init__(reason)


class Service:
    """What all requests share."""

    def __init__(self, config: ServerConfig, pool: WorkerPool, token: str | None):
        self.config, self.pool, self.ledger = config, pool, RequestLedger()
        self._token = None if token is None else token.encode()
        self.counts: dict[str, int] = dict.fromkeys(("served", "samples", "refused", "busy", "failed"), 0)
        self.begun = time.time()
        self.held = 0  # bytes of bodies that are being read, waiting or being scored
        self._room = (config.serve.workers + config.serve.queue) * config.serve.max_bytes

    def is_authorized(self, request: Request) -> bool:
        """Whether a request carries the token, if there is one; compared in constant time."""
        if self._token is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        return hmac.compare_digest(given.strip().encode(), self._token) and scheme.lower() == "bearer"

    async def score(self, request: Request) -> dict[str, Any]:
        """The answer of a worker. Raises RefusedError."""
        limits, kind = self.config.serve, request.headers.get("content-type", "").partition(";")[0].strip().lower()
        name = request.headers.get(REQUEST_ID)
        if name is not None and not ID.fullmatch(name):
            raise RefusedError(422, f"header {REQUEST_ID}: accepted: up to 64 letters, digits, _ and -")
        if kind not in (JSON, TENSORS):
            raise RefusedError(415, f"content type {kind[:80]!r}; accepted: {JSON} or {TENSORS}")
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced[:18]) > limits.max_bytes:
            with suppress(RefusedError):  # read it, within limits: see below
                await _read(request, 4 * limits.max_bytes, limits.timeout)
            raise RefusedError(413, f"{announced[:18]} bytes; accepted: at most {limits.max_bytes} a request")
        if self.pool.full:
            # answer only once the body is read: a client that is still sending would see a broken connection instead
            await _read(request, limits.max_bytes, limits.timeout)
            raise RefusedError(503, FULL)
        try:
            async with self._body(request) as (body, digest):  # a body that is still arriving takes no place
                if self.pool.full:
                    raise RefusedError(503, FULL)
                with self.pool.admitted():
                    reply = await self.ledger.once(name, kind + digest, lambda: self.pool.score(kind, body))
        except QueueFullError as error:
            raise RefusedError(503, str(error)) from None
        except ScoringTimeoutError as error:
            raise RefusedError(504, str(error)) from None
        except WorkersLostError as error:
            raise RefusedError(500, str(error)) from None
        except ConflictError as error:
            raise RefusedError(409, str(error)) from None
        if reply["status"] != 200:
            raise RefusedError(reply["status"], reply["answer"]["error"])
        return reply["answer"]

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[tuple[bytes, str]]:
        """(body, its SHA-256) of a request, counted in `held` meanwhile. Raises RefusedError if there is no room."""
        limits, body, digest = self.config.serve, bytearray(), hashlib.sha256()

        def keep(chunk: bytes) -> None:
            if self.held + len(chunk) > self._room:
                raise RefusedError(503, "the server already holds as many bytes of requests as it allows")
            self.held += len(chunk)
            body.extend(chunk)
            digest.update(chunk)

        try:
            await _read(request, limits.max_bytes, limits.timeout, keep)
            yield bytes(body), digest.hexdigest()
        finally:
            self.held -= len(body)

    def count(self, refusal: RefusedError) -> None:
        """Counts a refusal under its kind."""
        self.counts["busy" if refusal.status == 503 else "failed" if refusal.status >= 500 else "refused"] += 1


async def _read(request: Request, limit: int, seconds: float, keep: Callable[[bytes], None] | None = None) -> None:
    """Reads a body and passes it on in chunks. Raises RefusedError if it is too long, too late or too slow.

    The body must arrive within `seconds`, and at MIN_BYTES_PER_SECOND on average, plus PATIENCE seconds.
    """
    chunks, length, begun = aiter(request.stream()), 0, time.monotonic()
    while True:
        left = min(seconds, PATIENCE + length / MIN_BYTES_PER_SECOND) - (time.monotonic() - begun)
        try:
            chunk = await asyncio.wait_for(anext(chunks), left)
        except StopAsyncIteration:
            return
        except (TimeoutError, asyncio.TimeoutError):
            late = (
                f"the body did not arrive within {seconds:g} s, or at less than {MIN_BYTES_PER_SECOND} bytes a second"
            )
            raise RefusedError(408, late) from None
        except ClientDisconnect:
            raise RefusedError(400, "the client hung up") from None
        length += len(chunk)
        if length > limit:
            raise RefusedError(413, f"more than {limit} bytes; accepted: at most {limit} a request")
        if keep is not None:
            keep(chunk)


def build_app(service: Service) -> FastAPI:
    """The application: scores, the list of rewards, and health."""
    app = FastAPI(title="flowrl serve-rewards", docs_url=None, redoc_url=None, openapi_url=None)

    def answer(work: Callable[[Request], Awaitable[dict[str, object]]]) -> Callable[[Request], Awaitable[Response]]:
        async def respond(request: Request) -> Response:
            try:
                if not service.is_authorized(request):
                    raise RefusedError(401, "missing or wrong token; send Authorization: Bearer TOKEN")
                return JSONResponse(await work(request))
            except RefusedError as refusal:
                service.count(refusal)
                return _refusal_response(refusal)

        return respond

    async def score(request: Request) -> dict[str, Any]:
        result = await service.score(request)
        service.counts["served"] += 1
        service.counts["samples"] += len(result["items"])
        return result

    async def rewards(request: Request) -> dict[str, object]:
        limits = service.config.serve.model_dump(include={"max_bytes", "max_items", "max_pixels"})
        return {"version": VERSION, "flowrl": __version__, "rewards": service.pool.rewards, "limits": limits}

    async def state(request: Request) -> Response:
        if not (service.is_authorized(request) or _is_local(request)):
            return _refusal_response(RefusedError(401, "missing or wrong token; send Authorization: Bearer TOKEN"))
        result = health.server_state(service.config, service.pool, service.counts, service.begun)
        status = 200 if service.pool.ready else 503
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(health.state_page(result), status)
        return JSONResponse(result, status)

    app.add_api_route(SCORE, answer(score), methods=["POST"], response_model=None)
    app.add_api_route(REWARDS, answer(rewards), methods=["GET"], response_model=None)
    app.add_api_route("/health", state, methods=["GET"], response_model=None)
    app.add_exception_handler(HTTPException, _not_found)
    return app


async def _not_found(request: Request, error: Any) -> Response:
    """The response for unknown paths and methods."""
    return _refusal_response(
        RefusedError(error.status_code, f"{request.method} {request.url.path[:80]}: {error.detail}")
    )


def _refusal_response(refusal: RefusedError) -> Response:
    headers = {"Retry-After": RETRY_AFTER} if refusal.status == 503 else {}
    headers |= {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
    return JSONResponse({"version": VERSION, "error": refusal.reason}, refusal.status, headers)


def _is_local(request: Request) -> bool:
    """Whether a request is from this machine."""
    return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
