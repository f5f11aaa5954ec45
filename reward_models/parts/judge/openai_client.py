"""Asks OpenAI-compatible servers (vLLM, SGLang, `transformers serve`) many questions at once, from ordinary code.

Everything runs on one event loop in one thread that lives as long as the client: clients and semaphores used from a
second loop fail in ways that look like a server's fault. A question ends as an Answer or as a Failure with its reason,
never as an empty answer, and nothing waits forever: each try has a time limit, and so has the whole call.
"""

import asyncio
import itertools
import json
import math
import os
import random
import re
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowrl.untyped import JSON

AGAIN = {408, 409, 425, 429}  # and 500 and above: worth another try
LONGEST_PAUSE = 60.0


@dataclass(frozen=True)
class Answer:
    """A text, whether it was cut off, and the likeliest first tokens with their log-probabilities, if given."""

    text: str | None
    cut: bool
    top: tuple[tuple[str, float], ...] | None


@dataclass(frozen=True)
class Failure:
    """Why there is no answer: one of a few kinds, the full reason in one line, and whether to try again."""

    kind: str
    reason: str
    again: bool = True
    wait: float = 0.0


@dataclass(kw_only=True, eq=False)
class ServerArguments:
    """Where questions go, and with what limits: arguments of every judge behind a server.

    base_url: one or several addresses up to /v1 that serve the same model; questions are spread over them, and a retry
    goes to the next one. api_key_env: the environment variable that holds the key, never the key itself. timeout:
    seconds for one try. limit: seconds for all questions of one call in total. backoff: seconds before the first retry,
    doubled with each and varied by half.
    """

    base_url: str | Sequence[str]
    model: str
    api_key_env: str | None = None
    concurrency: int = 16
    retries: int = 4
    backoff: float = 0.5
    timeout: float = 60.0
    limit: float = 600.0


@dataclass(kw_only=True, eq=False)
class JudgeServer(ServerArguments):
    """The servers of one reward's model. Raises ValueError, naming `reward`, for values that are not accepted."""

    reward: str

    def __post_init__(self):
        for url in self.urls:
            if not isinstance(url, str) or not re.match(r"https?://[^/@\s]+(/\S*)?\Z", url):
                raise ValueError(
                    f"{self.reward}: base_url={url!r}; accepted is http(s)://host:port/v1 without a password, "
                    "or a list of such"
                )
        if not self.urls or not self.model:
            raise ValueError(f"{self.reward}: give base_url, such as http://localhost:8000/v1, and model, as served")
        for name, least in {"concurrency": 1, "retries": 0}.items():
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise ValueError(f"{self.reward}: {name}={getattr(self, name)!r}; accepted is {least} or more")
        for name in ("backoff", "timeout", "limit"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{self.reward}: {name}={getattr(self, name)!r}; accepted are seconds, above 0")

    @property
    def urls(self) -> list[str]:
        """The addresses, as a list."""
        return [self.base_url] if isinstance(self.base_url, str) else list(self.base_url)

    def key(self) -> str:
        """The key of the environment variable; if none is named, a word that servers without keys accept."""
        name = self.api_key_env
        if name is None:
            return "EMPTY"
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):  # may be the key itself: not repeated
            raise ValueError(
                f"{self.reward}: api_key_env is not the name of an environment variable; never give the key itself"
            )
        if not os.environ.get(name):
            raise ValueError(
                f"{self.reward}: the environment variable {name} is not set; export it, or drop api_key_env"
            )
        return os.environ[name]


class Client:
    """Asks one model of a Server. It owns a thread, which ends with it."""

    def __init__(self, server: JudgeServer):
        try:
            from openai import AsyncOpenAI
        except ImportError:
            raise ValueError(f'{server.reward} needs a package: pip install "flowrl-toolkit[judge]"') from None
        self._key = server.key()
        self.server = server
        self._loop = asyncio.new_event_loop()
        self._asked = itertools.count()
        self._slots = asyncio.Semaphore(server.concurrency)
        self._jitter = random.Random()  # its own: the run's draws stay what they are
        self._clients = [AsyncOpenAI(base_url=url, api_key=self._key, max_retries=0) for url in server.urls]
        thread = threading.Thread(target=_serve, args=(self._loop, self._clients), name=server.reward, daemon=True)
        thread.start()
        self.close = weakref.finalize(self, _end, self._loop, thread)

    def ask(self, bodies: Sequence[Mapping[str, JSON]]) -> list[Answer | Failure]:
        """The outcome of each request body (`messages` and other arguments of chat completions), in order."""
        if not bodies:
            return []
        asked = asyncio.run_coroutine_threadsafe(self._all(bodies), self._loop)
        try:
            return asked.result()
        except BaseException:  # an interrupt ends the questions too
            asked.cancel()
            raise

    async def _all(self, bodies: Sequence[Mapping[str, JSON]]) -> list[Answer | Failure]:
        tasks = [asyncio.ensure_future(self._one(next(self._asked), body)) for body in bodies]
        try:
            _, late = await asyncio.wait(tasks, timeout=self.server.limit)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            raise
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        over = Failure("limit", f"no answer within the {self.server.limit:g} s of the whole call (limit)")
        return [over if task.cancelled() else task.result() for task in tasks]

    async def _one(self, number: int, body: Mapping[str, JSON]) -> Answer | Failure:
        """Tries until there is an answer, a permanent failure, or no retry left."""
        failure = Failure("not asked", "not asked")
        for attempt in range(self.server.retries + 1):
            if attempt:
                pause = self.server.backoff * 2 ** (attempt - 1) * self._jitter.uniform(0.5, 1.5)
                await asyncio.sleep(min(max(pause, failure.wait), LONGEST_PAUSE))
            async with self._slots:
                outcome = await self._try((number + attempt) % len(self._clients), body)
            if isinstance(outcome, Answer):
                return outcome
            failure = outcome
            if not failure.again:
                break
        return failure

    async def _try(self, which: int, body: Mapping[str, JSON]) -> Answer | Failure:
        url, create = self.server.urls[which], self._clients[which].chat.completions.with_raw_response.create
        body = {"model": self.server.model, "temperature": 0.0, **body}
        try:
            # the client's own timeout starts anew with every byte
            got = await asyncio.wait_for(create(**body, timeout=self.server.timeout), self.server.timeout)
            return read(json.loads(got.http_response.content))
        except asyncio.TimeoutError:
            return Failure("timeout", f"{url}: no answer within {self.server.timeout:g} s (timeout)")
        except Exception as error:  # whatever it is, it is this question's outcome
            kind, reason, again = _outcome(error)
            return Failure(kind, f"{url}: {reason.replace(self._key, '***')}", again, _wait(error))


def read(answer: JSON) -> Answer:
    """The Answer in a decoded chat completion. Raises ValueError if it is not one, or not well-formed."""
    try:
        (choice,) = answer["choices"]
        text, cut = choice["message"].get("content"), choice.get("finish_reason") not in ("stop", None)
        listed = (choice.get("logprobs") or {}).get("content") or [{}]
        first = listed[0].get("top_logprobs") or ([listed[0]] if listed[0] else [])
        top = tuple((entry["token"], entry["logprob"]) for entry in first) or None
    except (TypeError, KeyError, IndexError, AttributeError, ValueError):
        raise ValueError("the answer is no chat completion with one choice") from None
    if not (text is None or isinstance(text, str)):
        raise ValueError("the answer's content is no text")
    for token, logprob in top or ():
        if not isinstance(token, str) or isinstance(logprob, bool) or not isinstance(logprob, int | float):
            raise ValueError("the answer's log-probabilities are no numbers")
        if not logprob <= 1e-3:  # NaN too
            raise ValueError(f"the answer has the log-probability {logprob}; accepted is 0 or less")
    return Answer(text, cut, top)


def _outcome(error: Exception) -> tuple[str, str, bool]:
    """(kind, reason in one line, whether another try may help) of the error that a try ended with."""
    status, name = getattr(error, "status_code", None), type(error).__name__
    said = " ".join(str(error).split())
    if isinstance(status, int):
        body = " ".join(str(getattr(error, "body", None) or "").split())
        return f"HTTP {status}", f"{name}: {said}: {body}"[:400], status in AGAIN or status >= 500
    if name in ("APIConnectionError", "APITimeoutError"):
        cause = error.__cause__ or error
        return "connection", f"{type(cause).__name__}: {' '.join(str(cause).split())}"[:400], True
    kind = "no chat completion" if isinstance(error, ValueError | RecursionError) else name
    return kind, f"{name}: {said}"[:400], True


def _wait(error: Exception) -> float:
    """Seconds that the server asks to wait, 0 if it does not say."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    asked = headers.get("retry-after", "")
    return float(asked) if re.fullmatch(r"\d{1,4}(\.\d{1,3})?", asked) else 0.0


def _serve(loop: asyncio.AbstractEventLoop, clients: Sequence[Any]) -> None:
    """The thread of a client: runs its loop until it is stopped, then closes what is open."""
    asyncio.set_event_loop(loop)
    loop.run_forever()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.gather(*(client.close() for client in clients), return_exceptions=True))
    loop.close()


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        thread.join(timeout=2.0)
