"""A server that draws completions, from its client's side: one request a completion, in vLLM's form or in SGLang's.

A request that fails is sent again, with the same seed, so that no completion is lost; an answer that does not fit what
was asked ends the rollout, since nothing may stand in for it. Deadlines are those of `exchange`, of the whole answer.
"""

import json
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flowrl.names import UserError
from flowrl.recipe.keys.engines import EngineKeys
from flowrl.untyped import JSON
from reward_models.parts.judge.servers import ServerUnavailableError, exchange, server
from samplers.tokens import Generation

FIRST_REST, LONGEST_REST = 0.25, 30.0  # seconds
TRY_AGAIN = (408, 409, 425, 429)  # and all from 500 on


class EngineError(RuntimeError):
    """The server that draws did not do so: the run ends with everything saved, and resumes once it does."""


class UnknownWeightsError(Exception):
    """The server no longer has the weights that a request named."""


@dataclass(frozen=True)
class Wanted:
    """One completion to be drawn: the prompt's ids, the seed of its noise, and what ends it beside the limit.

    chat: of a prompt with pictures, its messages, and arguments of the chat template; the server makes the ids of them.
    """

    ids: Sequence[int]
    seed: int
    plan: Generation
    stop: Sequence[str]
    stop_ids: Sequence[int]
    chat: tuple[list[dict[str, Any]], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Drawn:
    """One completion as a server drew it. prompt: the ids of the prompt that it read, or how many, as it tells them.

    stopped: whether it says that something ended it before the limit. version: of its weights, if told.
    """

    ids: list[int]
    logp: list[float]
    prompt: list[int] | int
    stopped: bool
    version: str | None


class Connection:
    """A server and how often it had to be asked again. url: which of those of the keys (None: the first).

    Raises UserError for a token that is not there.
    """

    def __init__(self, keys: EngineKeys, url: str | None = None):
        self.keys, self.url, self.retried = keys, url or keys.urls[0], 0
        self._lock = threading.Lock()
        self.headers = {"Content-Type": "application/json"}
        if keys.token_env is not None:
            token = os.environ.get(keys.token_env)
            if not token:
                raise UserError(
                    f"rollout.engine.token_env: the environment variable {keys.token_env} is not set; export it"
                )
            self.headers["Authorization"] = f"Bearer {token}"

    def ask(self, path: str, body: JSON = None, *, use: Callable[[JSON], Any] = lambda answer: answer) -> Any:
        """What `use` makes of the answer to a POST of this body, or to a GET.

        Where none comes, or `use` finds it damaged (KeyError, TypeError, IndexError), it is asked again after a rest.
        Raises EngineError where that does not help and for a refusal, UnknownWeightsError for status 404.
        """
        method, data = ("GET", b"") if body is None else ("POST", json.dumps(body).encode())
        url, left, rest = self.url, self.keys.retries, FIRST_REST
        while True:
            try:
                status, after, answer = exchange(server(url), method, path, data, self.headers, self.keys.timeout)
                text = answer.decode("utf-8", "replace")
                if status < 300:
                    return use(json.loads(text) if text[:1] in ("{", "[") else text)
                problem = f"status {status}: {_reason(text)}"
                if status < 500 and status not in TRY_AGAIN:
                    refusal = f"rollout.engine: {url}{path} refuses ({problem})"
                    raise UnknownWeightsError(refusal) if status == 404 else EngineError(refusal)
                rest = max(rest, after or 0.0)
            except ServerUnavailableError as error:
                problem = str(error)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                problem = f"an answer that is damaged ({type(error).__name__}: {error})"
            left -= 1
            if left < 0:
                times = f"{self.keys.retries + 1} times" if self.keys.retries else "once"
                raise EngineError(
                    f"rollout.engine: {url}{path} gave no completion, asked {times}; the last time {problem}; "
                    "see to the server, then use --resume"
                )
            with self._lock:
                self.retried += 1
            time.sleep(min(rest, LONGEST_REST) * random.uniform(0.75, 1.25))
            rest *= 2


def vllm_completion(to: Connection, model: str, wanted: Wanted) -> Drawn:
    """One completion by /v1/completions of vLLM, of the weights that go by the name `model`; by /v1/chat/completions
    where the prompt has pictures."""
    plan = wanted.plan
    body = {
        "model": model,
        "prompt": list(wanted.ids),
        "max_tokens": plan.max_new_tokens,
        "temperature": plan.temperature,
        "top_p": plan.top_p,
        "top_k": -1 if plan.top_k is None else plan.top_k,
        "min_p": plan.min_p,
        "repetition_penalty": plan.repetition_penalty,
        "seed": wanted.seed,
        "stop": list(wanted.stop),
        "stop_token_ids": list(wanted.stop_ids),
        "include_stop_str_in_output": True,
        "logprobs": 0,
        "return_token_ids": True,
    }
    if wanted.chat is not None:
        messages, arguments = wanted.chat
        body |= {"messages": messages, "logprobs": True}
        body |= {"chat_template_kwargs": arguments} if arguments else {}
        del body["prompt"]

    def use(answer: JSON) -> Drawn:
        choice = answer["choices"][0]
        if choice["finish_reason"] not in ("stop", "length"):
            raise KeyError(f"finish_reason {choice['finish_reason']!r}")
        told = choice["logprobs"]
        logp = told["token_logprobs"] if wanted.chat is None else [one["logprob"] for one in told["content"]]
        return Drawn(
            list(choice["token_ids"]),
            [float(value) for value in logp],
            list((choice if wanted.chat is None else answer)["prompt_token_ids"]),
            choice["finish_reason"] == "stop",
            answer["model"],
        )

    return to.ask("/v1/completions" if wanted.chat is None else "/v1/chat/completions", body, use=use)


def sglang_completion(to: Connection, model: str, wanted: Wanted) -> Drawn:
    """One completion by /generate of SGLang."""
    plan = wanted.plan
    how = {
        "max_new_tokens": plan.max_new_tokens,
        "temperature": plan.temperature,
        "top_p": plan.top_p,
        "top_k": -1 if plan.top_k is None else plan.top_k,
        "min_p": plan.min_p,
        "repetition_penalty": plan.repetition_penalty,
        "sampling_seed": wanted.seed,
        "stop": list(wanted.stop),
        "stop_token_ids": list(wanted.stop_ids),
        "no_stop_trim": True,
    }
    body = {
        "input_ids": list(wanted.ids),
        "sampling_params": how,
        "return_logprob": True,
    }

    def use(answer: JSON) -> Drawn:
        meta = answer["meta_info"]
        if meta["finish_reason"]["type"] not in ("stop", "length"):
            raise KeyError(f"finish_reason {meta['finish_reason']}")
        drawn = meta["output_token_logprobs"]
        return Drawn(
            [int(row[1]) for row in drawn],
            [float(row[0]) for row in drawn],
            int(meta["prompt_tokens"]),
            meta["finish_reason"]["type"] == "stop",
            meta.get("weight_version"),
        )

    return to.ask("/generate", body, use=use)


def vllm_tokens(to: Connection, model: str, text: str) -> list[int]:
    """The ids of a text as the server reads it."""
    body = {"model": model, "prompt": text, "max_tokens": 1, "return_token_ids": True}
    return to.ask("/v1/completions", body, use=lambda answer: list(answer["choices"][0]["prompt_token_ids"]))


def sglang_tokens(to: Connection, model: str, text: str) -> list[int]:
    """The ids of a text as the server reads it."""
    how = {"max_new_tokens": 1}
    body = {"text": text, "sampling_params": how, "return_logprob": True, "logprob_start_len": 0}
    return to.ask("/generate", body, use=lambda a: [int(row[1]) for row in a["meta_info"]["input_token_logprobs"]])


def _reason(text: str) -> str:
    """What an error's body says, in one line."""
    try:
        found = json.loads(text)
        found = found.get("error", found) if isinstance(found, dict) else found
        text = found.get("message", text) if isinstance(found, dict) else str(found)
    except (ValueError, AttributeError):
        pass
    return " ".join(str(text).split())[:300] or "no reason"
