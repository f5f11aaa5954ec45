"""The centred ratio and the mask by divergence, on Gaussians whose means have moved."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowrl.contracts import Batch, LogProbs
from flowrl.core.objectives.grpo import ClippedObjective
from samplers.gaussian import Gaussian

D = 4096
STD = torch.tensor([[0.7], [0.35], [0.1]], dtype=torch.float64)
GUARD = ClippedObjective(2e-6, 2e-6, ratio="centred")
DPPO = ClippedObjective(1e-4, 1e-4, kl_mask=3e-5)


def moved(size: float = 1e-3) -> tuple[LogProbs, Tensor, Tensor, Tensor, Tensor]:
    """(log-probs of three decisions [3, 1] whose means have moved, as drawn, KL to those, shift, noise)."""
    draw = torch.Generator().manual_seed(0)
    old, shift, noise = (torch.randn(3, D, generator=draw, dtype=torch.float64) for _ in range(3))
    shift = size * shift
    before, after = Gaussian(old, STD), Gaussian((old + shift).requires_grad_(), STD)
    x = before.sample(noise)
    total, count = after.centred_sums(old, x)
    score = LogProbs(torch.arange(3), torch.arange(1), after.log_prob(x)[:, None], centred=(total / count)[:, None])
    return score, before.log_prob(x)[:, None], before.kl(after)[:, None].detach(), shift, noise


def run(
    objective: ClippedObjective, score: LogProbs, rollout_logp: Tensor, adv: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    mask = torch.ones_like(rollout_logp, dtype=torch.bool)
    return objective(score, Batch(rollout_logp, adv, mask, step_stats={"std": STD}))


def test_the_exponent_is_the_mean_of_shift_times_noise_whatever_the_std():
    score, rollout_logp, _, shift, noise = moved()
    _, metrics = run(GUARD, score, rollout_logp, torch.ones(3))
    wanted = (shift * noise).mean(1, keepdim=True)
    torch.testing.assert_close(metrics["ratio"].log(), wanted, rtol=1e-9, atol=1e-14)
    assert metrics["abs_log_ratio_max"] == pytest.approx(float(wanted.abs().max()))
    torch.testing.assert_close(metrics["log_ratio"], (score.logp - rollout_logp).detach())  # still that of the policies


def test_one_clip_range_fits_all_steps():
    """The plain log-ratio has the mean -KL, which goes with 1 / std^2; the centred one has one spread everywhere."""
    score, rollout_logp, kl, *_ = moved()
    torch.testing.assert_close(kl * STD.square(), torch.full_like(kl, 5e-7), rtol=0, atol=5e-8)
    assert score.centred is not None
    centred, plain = (score.centred * STD).detach().abs(), (score.logp - rollout_logp).detach().abs()
    assert centred.max() < 3e-3 / D**0.5 and plain.max() > 3e-3 / D**0.5  # three standard deviations


def test_the_gradient_of_the_centred_ratio():
    """d loss / d mean = -A r z / D where the ratio is not clipped, at every std."""
    score, rollout_logp, _, shift, noise = moved(1e-5)
    wide = replace(GUARD, clip_low=0.5, clip_high=0.5)
    loss, metrics = run(wide, score, rollout_logp, torch.tensor([1.0, -2.0, 0.5]))
    assert score.centred is not None
    slope = torch.autograd.grad(loss.sum(), score.centred)[0]
    wanted = -torch.tensor([[1.0], [-2.0], [0.5]]) * metrics["ratio"] * STD
    torch.testing.assert_close(slope, wanted.double())


def test_the_divergence_is_read_off_two_log_ratios():
    score, rollout_logp, kl, *_ = moved()
    assert score.centred is not None
    torch.testing.assert_close((score.centred - (score.logp - rollout_logp)).detach(), kl, rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_only_what_is_far_and_moves_away_is_left_alone(sign: float):
    score, rollout_logp, kl, *_ = moved()
    far = kl >= DPPO.kl_mask
    assert 0 < far.sum() < 3
    loss, metrics = run(DPPO, score, rollout_logp, torch.full((3,), sign, dtype=torch.float64))
    ratio = (score.logp - rollout_logp).detach().exp()
    left = far & ((ratio > 1) if sign > 0 else (ratio < 1))
    torch.testing.assert_close(loss.detach(), (-sign * ratio).where(~left, 0.0))
    assert torch.equal(metrics["clip_frac"].bool(), left) and torch.equal(metrics["outside_frac"].bool(), far)
    slope = torch.autograd.grad(loss.sum(), score.logp)[0]
    torch.testing.assert_close(slope, (-sign * ratio).where(~left, 0.0))


def test_what_asks_for_means():
    for objective in (GUARD, DPPO):
        assert objective.view.centred and not replace(objective, ratio="plain", kl_mask=None).view.centred
        score, rollout_logp, *_ = moved()
        with pytest.raises(ValueError, match="compares means"):
            run(objective, replace(score, centred=None), rollout_logp, torch.ones(3))
    with pytest.raises(ValueError, match="needs 'std'"):
        score, rollout_logp, *_ = moved()
        mask = torch.ones_like(rollout_logp)
        GUARD(score, Batch(rollout_logp, torch.ones(3), mask))


def test_padding_does_not_leak():
    score, rollout_logp, *_ = moved()
    mask = torch.tensor([[True], [False], [True]])
    bad = replace(score, centred=score.centred.where(mask, torch.nan) if score.centred is not None else None)
    for objective in (GUARD, DPPO):
        loss, metrics = objective(bad, Batch(rollout_logp, torch.ones(3), mask, step_stats={"std": STD}))
        assert loss[1] == 0 and all(torch.isfinite(value).all() for value in metrics.values())
