"""Policies behind a real endpoint on loopback, for tests."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import openai
import torch

import language_support
from flowrl.contracts import Prompt
from flowrl.engines.app import build_app
from flowrl.engines.run import served
from flowrl.engines.service import PolicyService
from flowrl.policies import adapters
from flowrl.policies.language.policy import LanguagePolicy
from policies_support import shake

NAME = "tiny"
PLAN = language_support.PLAN


def adapted(seed: int | None = None) -> LanguagePolicy:
    """A random model with adapters, which are moved by the seed, if one is given."""
    made = language_support.policy(batch_invariant=True)
    adapters.add_lora(made.modules, rank=4, alpha=8, targets="all")
    if seed is not None:
        shake(made.modules, seed=seed)
    return made


def saved(policy: LanguagePolicy, folder: Path) -> Path:
    """The folder, with the policy's weights as a run leaves them."""
    folder.mkdir(parents=True)
    policy.source.save_weights(folder)
    return folder


@contextlib.contextmanager
def endpoint(policy: LanguagePolicy, token: str | None = None, **options: Any) -> Iterator[tuple[PolicyService, str]]:
    """(service, address) of a policy that is served within."""
    service = PolicyService(policy, NAME, PLAN, **options)
    with served(build_app(service, token)) as url:
        yield service, url


def trimmed(tokens: torch.Tensor, logp: torch.Tensor, length: torch.Tensor) -> list[tuple[list[int], list[float]]]:
    """(ids, log-probs) of each row, without its padding."""
    return [(t[:n].tolist(), p[:n].tolist()) for t, p, n in zip(tokens, logp, length.tolist(), strict=True)]


def solve(base_url: str, prompt: Prompt, extra: int = 7) -> Any:
    """An agent by its prompt's text, which begins with what it does: it asks, and asks again with ids or a chat."""
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)

    def ask(ids: Sequence[int]) -> list[int]:
        answer = client.completions.create(
            model="policy", prompt=list(ids), max_tokens=4, extra_body={"return_token_ids": True}
        )
        return answer.choices[0].token_ids

    begin = [1, *range(20, 20 + len(prompt.text))]
    way = prompt.text.split()[0]
    if way == "quiet":
        return 1.0
    if way == "chat":
        said = [{"role": "user", "content": "7*8"}]
        text = client.chat.completions.create(model="policy", messages=said, temperature=1.5).choices[0].message.content
        return {"reward": len(text), "words": 1}
    first = ask(begin)
    if way == "raises":
        raise RuntimeError("out of luck")
    if way == "on":
        first = ask([*begin, *first, extra])
    if way == "anew":
        first = ask([*begin, extra, extra])
    if way == "greedy":
        while True:
            first = ask([*begin, *first])
    return float(sum(first))


def asks(base_url: str, prompt: Prompt) -> dict[str, float]:
    """An agent of two calls about a sum, the second with what the first gave."""
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
    messages: list[Any] = [{"role": "user", "content": prompt.text}]
    answer = client.chat.completions.create(model="policy", messages=messages).choices[0].message.content or ""
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": prompt.text}]
    again = client.chat.completions.create(model="policy", messages=messages, n=2).choices
    if "777" in answer:
        raise RuntimeError("out of luck")
    return {"reward": float(sum(len(one.message.content or "") for one in again) + len(answer))}
