"""Policies that draw with a static cache and remember its buffers, and how their rollouts are compared."""

from typing import Any

import torch

from flowrl.contracts import Rollout
from flowrl.policies.language.drawing.static_cache import StaticBuffers, StaticCache
from flowrl.policies.language.policy import LanguagePolicy


class Watched(StaticCache):
    """One that remembers its buffers."""

    def __init__(self, backend: str = "inductor"):
        super().__init__(backend)
        self.made: list[StaticBuffers] = []

    def buffers(self, model: Any, rows: int, tokens: int) -> StaticBuffers:
        self.made.append(super().buffers(model, rows, tokens))
        return self.made[-1]


def static(subject: LanguagePolicy, backend: str = "inductor") -> LanguagePolicy:
    subject.static = Watched(backend)
    return subject


def filled(subject: LanguagePolicy) -> list[StaticBuffers]:
    """The buffers that rows have stood in."""
    assert isinstance(subject.static, Watched)
    return [buffers for buffers in subject.static.made if buffers.shape != (0, 0)]


def assert_same(found: Rollout, whole: Rollout, within: float = 1e-5) -> None:
    assert torch.equal(found.replay.tokens, whole.replay.tokens) and torch.equal(found.mask, whole.mask)
    torch.testing.assert_close(found.rollout_logp, whole.rollout_logp, atol=within, rtol=0)
    assert found.step_stats.keys() == whole.step_stats.keys()
    for name, values in whole.step_stats.items():
        torch.testing.assert_close(found.step_stats[name], values, atol=within, rtol=0)
