"""Policies behind a real endpoint on loopback, for tests."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import language_support
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
