"""Factors of decisions: closed forms, what a tree's rows do to them, and that a divergence beside them stays."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowrl.contracts import LogProbs, Rollout, Samples
from flowrl.core.backward import StepLoss, with_step_weights
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.objectives.step_weights import KINDS, step_weights, top_entropy

STD = torch.tensor([0.7, 0.5, 0.3])
DT = torch.tensor([-0.05, -0.15, -0.4])


def straight(rows: int = 4) -> tuple[Tensor, dict[str, Tensor]]:
    """Mask and step_stats of rows that are trained at all three steps."""
    return torch.ones(rows, 3, dtype=torch.bool), {"std": STD.repeat(rows, 1), "dt": DT.repeat(rows, 1)}


def branched() -> tuple[Tensor, dict[str, Tensor]]:
    """Two rows of the first step, four of the second, eight of the third; masked step_stats are 0, as of policies."""
    step = torch.tensor([0] * 2 + [1] * 4 + [2] * 8)
    mask = step[:, None] == torch.arange(3)
    entropy = torch.linspace(0.2, 1.5, len(step))[:, None].where(mask, 0.0)
    return mask, {"std": STD.where(mask, 0.0), "dt": DT.where(mask, 0.0), "entropy": entropy}


@pytest.mark.parametrize("shape", [straight, branched])
def test_noise_has_mean_one_over_steps_however_many_rows_they_have(shape):
    mask, step_stats = shape()
    factor = step_weights("noise", mask, step_stats)
    assert factor is not None and factor.dtype == torch.float32
    torch.testing.assert_close(factor[mask], (STD / STD.mean()).expand(mask.shape)[mask])
    assert (factor[~mask] == 0).all()
    per_step = factor.sum(0) / mask.sum(0)
    assert float(per_step.mean()) == pytest.approx(1.0, abs=1e-6)


def test_a_step_that_no_row_is_trained_at_is_not_in_the_mean():
    mask, step_stats = straight()
    mask[:, 1] = False
    factor = step_weights("noise", mask, step_stats)
    assert factor is not None
    torch.testing.assert_close(factor[0], torch.tensor([1.4, 0.0, 0.6]))
    nothing = step_weights("noise", torch.zeros_like(mask), step_stats)
    assert nothing is not None and torch.equal(nothing, torch.zeros(4, 3))


def test_inverse_dt_is_that_of_each_row():
    mask, step_stats = branched()
    step_stats["dt"][0, 0] = -0.1
    factor = step_weights("inverse_dt", mask, step_stats)
    assert factor is not None
    torch.testing.assert_close(factor[:2, 0], torch.tensor([10.0, 20.0]))
    torch.testing.assert_close(factor.sum(0), torch.tensor([30.0, 4 / 0.15, 8 / 0.4]))
    assert torch.isfinite(factor).all()


def test_a_list_and_none():
    mask, step_stats = branched()
    factor = step_weights((2.0, 0.0, 0.5), mask, {})
    assert factor is not None and torch.equal(factor, torch.tensor([2.0, 0.0, 0.5]) * mask)
    assert step_weights("none", mask, step_stats) is None


def test_errors():
    mask, _ = straight()
    with pytest.raises(ValueError, match="2 factors, but 3 steps"):
        step_weights((1.0, 2.0), mask, {})
    for kind, name in (("noise", "std"), ("inverse_dt", "dt")):
        with pytest.raises(ValueError, match=f"needs '{name}'"):
            step_weights(kind, mask, {})
    with pytest.raises(ValueError, match="choose one of none, noise, inverse_dt"):
        step_weights("std", mask, {})
    with pytest.raises(ValueError, match="choose one of plain, centred"):
        ClippedObjective(0.1, 0.1, ratio="centered")


# ---- in a whole loss


def rollout_of(mask: Tensor, step_stats: dict[str, Tensor]) -> tuple[Rollout, Tensor, LogProbs]:
    draw = torch.Generator().manual_seed(0)
    rollout_logp = torch.randn(mask.shape, generator=draw)
    rollout = Rollout(Samples([], torch.arange(len(mask)), texts=[]), rollout_logp, mask, None, step_stats=step_stats)
    logp = rollout_logp + 0.1 * torch.randn(mask.shape, generator=draw)
    score = LogProbs(torch.arange(len(mask)), torch.arange(3), logp.requires_grad_(), kl=logp.square())
    return rollout, torch.randn(len(mask), generator=draw), score


def gradient(objective: ClippedObjective, rollout: Rollout, adv: Tensor, score: LogProbs, block: Tensor) -> Tensor:
    mask = rollout.mask
    loss = StepLoss(
        rollout, with_step_weights(adv, objective, rollout, block), objective, objective.weights(mask), weights(mask)
    )
    return torch.autograd.grad(loss(score), score.logp, retain_graph=True)[0]


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "none"] + [(0.5, 2.0, 1.0)])
@pytest.mark.parametrize("dual", [None, 1.05])
def test_a_factor_scales_the_policy_gradient_of_a_decision_and_no_divergence(kind, dual: float | None):
    rollout, adv, score = rollout_of(*branched())
    rows = torch.arange(len(adv))
    base = ClippedObjective(0.05, 0.05, dual=dual)
    plain = gradient(base, rollout, adv, score, rows)
    divergence = gradient(replace(base, kl=0.3), rollout, adv, score, rows) - plain
    factor = step_weights(kind, rollout.mask, rollout.step_stats)
    assert factor is not None and plain.abs().max() > 1e-3 and divergence.abs().max() > 1e-3
    weighted = gradient(replace(base, weight=kind, kl=0.3), rollout, adv, score, rows)
    torch.testing.assert_close(weighted, factor * plain + divergence, rtol=1e-5, atol=1e-7)


def test_rows_outside_the_update_have_no_say_in_the_mean():
    mask, step_stats = straight()
    step_stats["std"][2:] *= 7.0
    rollout, adv, _ = rollout_of(mask, step_stats)
    spread = with_step_weights(adv, ClippedObjective(0.1, 0.1, weight="noise"), rollout, torch.arange(2))
    torch.testing.assert_close(spread[:2], adv[:2, None] * (STD / STD.mean()))
    assert (spread[2:] == 0).all()


def test_exact_dt_reads_the_lengths_of_the_steps():
    rollout, adv, score = rollout_of(*straight())
    rows, none = torch.arange(4), torch.zeros_like(adv)
    exact = gradient(ClippedObjective(0.1, 0.1, kl=0.3), rollout, none, score, rows)
    scaled = gradient(ClippedObjective(0.1, 0.1, kl=0.3, kl_kind="exact_dt"), rollout, none, score, rows)
    torch.testing.assert_close(scaled, exact * DT.abs())


# ---- the top of the entropies


def test_the_top_of_the_entropies_is_taken_among_trained_tokens():
    """Two of ten, whatever stands where the mask does not, with what equals the limit; three tie at it: all are in."""
    entropy = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.7, 0.8, 0.9, 1.0, 7.0, 8.0]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]).bool()
    found = top_entropy(0.2, mask, {"entropy": entropy})
    assert found.dtype == torch.float32 and found.nonzero().tolist() == [[1, 2], [1, 3]]
    assert torch.equal(top_entropy(1.0, mask, {"entropy": entropy}), mask.float())
    tied = top_entropy(0.1, torch.ones(1, 5, dtype=torch.bool), {"entropy": torch.tensor([[2.0, 1.0, 2.0, 0.0, 2.0]])})
    assert tied.tolist() == [[1, 0, 1, 0, 1]]
    assert torch.equal(top_entropy(0.2, torch.zeros_like(mask), {"entropy": entropy}), torch.zeros(2, 6))
    with pytest.raises(ValueError, match="needs 'entropy' of each decision"):
        top_entropy(0.2, mask, {})


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("number", [1, 2, 11, 101, 1000])
def test_the_limit_is_the_quantile_of_float32_entropies(share: float, number: int):
    entropy = torch.rand(1, number, generator=torch.Generator().manual_seed(number))
    found = top_entropy(share, torch.ones(1, number, dtype=torch.bool), {"entropy": entropy})
    assert torch.equal(found.bool(), entropy >= torch.quantile(entropy, 1 - share))


def test_more_entropies_than_torch_sorts_have_a_limit_too(monkeypatch: pytest.MonkeyPatch):
    entropy = torch.rand(3, 400, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 400, dtype=torch.bool)
    few = top_entropy(0.3, mask, {"entropy": entropy})
    monkeypatch.setattr("flowrl.core.objectives.step_weights.MOST_VALUES", 100)
    assert torch.equal(top_entropy(0.3, mask, {"entropy": entropy}), few) and few.sum() == 360


def test_the_share_leaves_the_divergence_and_the_divisor_alone():
    """Of four tokens one is in: a quarter of its own policy gradient, and the gradient of all four divergences."""
    objective = ClippedObjective(0.2, 0.2, kl=0.5, kl_kind="k2", entropy_share=0.25)
    mask, step_stats = torch.ones(1, 4, dtype=torch.bool), {"entropy": torch.tensor([[0.3, 0.1, 0.9, 0.2]])}
    logp = torch.zeros(1, 4, requires_grad=True)
    reference = torch.tensor([[0.2, -0.4, 0.6, 0.8]])
    rollout = Rollout(
        Samples([], torch.zeros(1)), torch.zeros(1, 4), mask, None, reference=reference, step_stats=step_stats
    )
    adv = with_step_weights(torch.tensor([2.0]), objective, rollout, torch.arange(1))
    loss = StepLoss(rollout, adv, objective, objective.weights(mask), weights(mask))
    loss(LogProbs(torch.arange(1), torch.arange(4), logp)).backward()
    expected = (0.5 * -reference - torch.tensor([[0.0, 0.0, 2.0, 0.0]])) / 4
    torch.testing.assert_close(logp.grad, expected)
