"""Samples drawn anew from an iteration's, prompts that are drawn beyond those trained, and a store of the largest."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowrl.contracts import Rollout
from flowrl.core.expansion import Expansion
from flowrl.core.learning.learner import Learner
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.replay import SampleStore, resampled
from flowrl.core.update import Settings, update
from flowrl.policies import adapters
from language_support import PLAN, PROMPTS, policy


def gradient(rollout: Rollout, adv: Tensor, aggregate: str) -> list[Tensor]:
    """What a first step of plain descent moves all weights by, over 100."""
    subject = policy()
    adapters.train_full(subject.modules)
    learner = Learner(subject.trainable(), lr=1.0, max_grad_norm=None)
    learner.optimizer = torch.optim.SGD(learner.parameters, lr=1.0)
    before = [p.detach().clone() for p in learner.parameters]
    settings = Settings(group=2, micro_batch=2)
    update(subject, learner, rollout, adv, ClippedObjective(0.2, 0.2, aggregate=aggregate), settings)  # pyright: ignore
    return [p.detach() - old for p, old in zip(learner.parameters, before, strict=True)]


def rows_of(rollout: Rollout, at: Sequence[int]) -> Rollout:
    held, index = rollout.replay, torch.tensor(at)
    replay = replace(held, prompts=[held.prompts[i] for i in at], tokens=held.tokens[index], length=held.length[index])
    samples = rollout.samples[list(at)]
    return Rollout(samples, rollout.rollout_logp[index], rollout.mask[index], replay)


@pytest.mark.parametrize("aggregate", ["decision_mean", "seq_mean_mean"])
def test_a_sample_counts_as_often_as_it_was_drawn(aggregate: str) -> None:
    rollout = policy().rollout(PROMPTS, group_size=2, plan=PLAN, seed=1)
    adv = torch.tensor([1.0, -0.5, 0.3, -2.0, 0.7, 0.4])
    counts = torch.tensor([2, 0, 1, 3, 0, 1])
    masked = replace(rollout, mask=rollout.mask & (counts > 0)[:, None], counts=counts)
    repeated = [i for i, number in enumerate(counts.tolist()) for _ in range(number)]
    one = gradient(masked, adv.where(counts > 0, 0.0), aggregate)
    other = gradient(rows_of(rollout, repeated), adv[repeated], aggregate)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert max(float(a.abs().max()) for a in one) > 1e-3


@pytest.mark.parametrize("kind", ["pow", "max_min", "max_random"])
def test_samples_are_drawn_by_their_score_and_never_where_there_is_none(kind: str) -> None:
    rollout = policy().rollout(PROMPTS, group_size=2, plan=PLAN, seed=1)
    scores, adv = torch.tensor([0.5, torch.nan, 1.0, -0.2, 0.0, 1.0]), torch.ones(6)
    total = torch.zeros(6)
    for seed in range(400):
        found, kept = resampled(rollout, adv, scores, kind, 2.0, torch.Generator().manual_seed(seed))
        assert found.counts is not None and int(found.counts.sum()) == 5
        assert torch.equal(found.mask.any(1), found.counts > 0) and torch.equal(kept != 0, found.counts > 0)
        total += found.counts
    expected = {"pow": [0.25, 0, 1, 0.04, 0, 1], "max_min": [0, 0, 1, 1, 0, 1], "max_random": [1, 0, 4, 1, 1, 4]}[kind]
    wanted = torch.tensor(expected, dtype=torch.float32) / sum(expected) * total.sum()
    assert ((total - wanted).abs() <= 4 * wanted.sqrt()).all()  # standard errors of 2,000 draws
    one, _ = resampled(rollout, adv, scores, kind, 2.0, torch.Generator().manual_seed(7))
    two, _ = resampled(rollout, adv, scores, kind, 2.0, torch.Generator().manual_seed(7))
    assert one.counts is not None and two.counts is not None and torch.equal(one.counts, two.counts)


def test_the_ratio_follows_the_share_of_prompts_with_an_advantage() -> None:
    expansion = Expansion(0.5, 4.0)
    assert expansion.number(8) == 8
    assert expansion.observe({"groups/drawn": 8.0, "groups/kept": 4.0}) == {"expansion": 1.0}
    assert expansion.ratio == 1.5 and expansion.number(8) == 12
    expansion.observe({"groups/drawn": 12.0, "groups/kept": 0.0})  # nothing was learned: towards the most
    assert expansion.ratio == 2.75 and expansion.number(3) == 9
    again = Expansion(0.5, 4.0)
    again.load_state_dict(expansion.state_dict())
    assert again.ratio == expansion.ratio


def test_a_store_of_the_largest_keeps_them_whenever_they_came() -> None:
    newest, largest = SampleStore(2, 9), SampleStore(2, 9, keep="largest")
    for store in (newest, largest):
        store.add([{"n": 0}, {"n": 1}], torch.tensor([-3.0, 0.5]), 0)
        store.add([{"n": 2}, {"n": 3}], torch.tensor([1.0, 0.1]), 1)
    assert [sample["n"] for sample in newest.held] == [2, 3] and [sample["n"] for sample in largest.held] == [0, 2]
