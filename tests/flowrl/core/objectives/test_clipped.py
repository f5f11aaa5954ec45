"""The clipped loss: agreement with its formula, its limits, precision at latent clips, ratio levels, padding."""

import math

import pytest
import torch
from torch import Tensor

from flowrl.core.objectives.clipped import LEVELS, clipped_loss

CLIP = dict(clip_low=0.2, clip_high=0.3)


def batch(rows: int = 6, width: int = 7, spread: float = 0.4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    rollout_logp = torch.randn(rows, width, generator=draw, dtype=torch.float64)
    logp = (rollout_logp + spread * torch.randn(rows, width, generator=draw, dtype=torch.float64)).requires_grad_()
    adv = torch.tensor([1.5, -1.0, 0.4, -0.3, 2.0, -2.0], dtype=torch.float64)[:rows]
    mask = torch.rand(rows, width, generator=draw) < 0.8
    return logp, rollout_logp, adv, mask


def gradient(loss: Tensor, logp: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), logp, retain_graph=True)[0]


@pytest.mark.parametrize("dual", [None, 1.35])
def test_equals_the_maximum_it_stands_for(dual: float | None) -> None:
    logp, rollout_logp, adv, _ = batch()
    a, r = adv[:, None], (logp - rollout_logp).exp()
    want = torch.maximum(-a * r, -a * r.clamp(0.8, 1.3))
    if dual is not None:
        want = torch.where(a < 0, torch.minimum(want, -a * dual), want)
    loss, metrics = clipped_loss(logp, rollout_logp, adv, dual=dual, **CLIP)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(gradient(loss, logp), gradient(want, logp))
    assert metrics["clip_frac"].any() and (dual is None or metrics["dual_frac"].any())


@pytest.mark.parametrize("level", LEVELS)
def test_at_ratio_one_the_gradient_is_the_policy_gradient(level: str) -> None:
    """Nothing is clipped, and the gradient of the row is -A on each decision, up to the level's own weights."""
    _, rollout_logp, adv, _ = batch()
    logp = rollout_logp.clone().requires_grad_()
    loss, metrics = clipped_loss(logp, rollout_logp, adv, level=level, clip_low=1e-6, clip_high=1e-6, dual=3.0)
    torch.testing.assert_close(loss, -adv[:, None].expand_as(loss))
    # A row-wide ratio appears in each of the 7 losses; a mean of 7 undoes it, a sum does not.
    factor = 7.0 if level == "seq_sum" else 1.0
    torch.testing.assert_close(gradient(loss, logp), -factor * adv[:, None].expand_as(loss))
    for name in ("clip_frac", "dual_frac", "outside_frac", "log_ratio", "approx_kl"):
        assert not metrics[name].any()
    assert metrics["abs_log_ratio_max"] == 0


def test_gradient_is_zero_exactly_where_clipped() -> None:
    logp, rollout_logp, adv, _ = batch()
    loss, metrics = clipped_loss(logp, rollout_logp, adv, dual=1.35, **CLIP)
    stopped = (metrics["clip_frac"] + metrics["dual_frac"]).bool()
    grad = gradient(loss, logp)
    assert stopped.any() and not stopped.all()
    assert torch.equal(grad == 0, stopped)


def test_the_clip_acts_only_against_the_advantage() -> None:
    """A ratio beyond the clip on the losing side keeps its gradient: the loss is pessimistic."""
    logp = torch.tensor([[0.5], [-0.5], [0.5], [-0.5]], requires_grad=True)
    adv = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss, metrics = clipped_loss(logp, torch.zeros(4, 1), adv, **CLIP)
    assert metrics["outside_frac"].all()
    assert metrics["clip_frac"][:, 0].tolist() == [1.0, 0.0, 0.0, 1.0]
    torch.testing.assert_close(loss[:, 0], torch.tensor([-1.3, -math.exp(-0.5), math.exp(0.5), 0.8]))


def test_dual_clip_bounds_the_loss_of_bad_samples() -> None:
    logp = torch.tensor([[3.0], [3.0], [0.5]], requires_grad=True)
    adv = torch.tensor([-2.0, 2.0, -2.0])
    loss, metrics = clipped_loss(logp, torch.zeros(3, 1), adv, dual=3.0, **CLIP)
    torch.testing.assert_close(loss[:, 0], torch.tensor([6.0, -2.6, 2 * math.exp(0.5)]))
    assert metrics["dual_frac"][:, 0].tolist() == [1.0, 0.0, 0.0]
    assert gradient(loss, logp)[0] == 0


@pytest.mark.parametrize("clip", [1e-6, 2e-6, 1e-5])
def test_latent_clips_are_decided_exactly_in_float32(clip: float) -> None:
    """Log-ratios from 0.9 to 1.1 clips, 200 of them: the ratio itself has only about ten float32 values in between."""
    d = torch.linspace(0.9, 1.1, 201, dtype=torch.float64) * clip
    d = torch.cat([d, -d]).to(torch.float32)[:, None].requires_grad_()
    adv = torch.cat([torch.ones(201), -torch.ones(201)])
    loss, metrics = clipped_loss(d, torch.zeros_like(d), adv, clip_low=clip, clip_high=clip)
    want = torch.expm1(d.detach().double()).abs() > clip
    near = (torch.expm1(d.detach().double()).abs() / clip - 1).abs() < 1e-5  # the clip itself rounds to float32
    assert torch.equal(metrics["clip_frac"].bool() | near, want | near)
    assert near.sum() < 5
    assert torch.equal(gradient(loss, d) == 0, metrics["clip_frac"].bool())


def test_float64_log_probs_keep_float64() -> None:
    """Log-probs near 1 with a clip of 1e-6: float32 cannot hold the difference, float64 does."""
    rollout_logp = torch.tensor([[1.3]], dtype=torch.float64)
    loss, metrics = clipped_loss(rollout_logp + 1.01e-6, rollout_logp, torch.ones(1), clip_low=1e-6, clip_high=1e-6)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, torch.tensor([[-1.000001]], dtype=torch.float64), rtol=0, atol=1e-12)
    assert metrics["clip_frac"].all()
    assert (
        clipped_loss(rollout_logp.bfloat16(), rollout_logp.bfloat16(), torch.ones(1), **CLIP)[0].dtype == torch.float32
    )


def test_levels_against_their_definitions() -> None:
    logp, rollout_logp, adv, mask = batch(spread=0.1)
    d = (logp - rollout_logp) * mask
    mean, total = d.sum(1, keepdim=True) / mask.sum(1, keepdim=True), d.sum(1, keepdim=True)
    wide = dict(clip_low=1.0, clip_high=1e9)  # the ratio alone
    for level, exponent in (("token", d), ("seq_mean", mean), ("seq_sum", total), ("seq_token", mean)):
        loss, metrics = clipped_loss(logp, rollout_logp, adv, level=level, mask=mask, **wide)
        torch.testing.assert_close(loss, -adv[:, None] * exponent.exp() * mask)
        torch.testing.assert_close(metrics["abs_log_ratio_max"], (exponent * mask).abs().max().detach())


def test_seq_token_and_seq_mean_agree_after_a_mean_over_the_row() -> None:
    logp, rollout_logp, adv, mask = batch(spread=0.1)
    calls = [clipped_loss(logp, rollout_logp, adv, level=v, mask=mask, **CLIP)[0] for v in ("seq_mean", "seq_token")]
    share = mask / mask.sum(1, keepdim=True)
    torch.testing.assert_close(calls[0], calls[1])
    torch.testing.assert_close(gradient(calls[0] * share, logp), gradient(calls[1] * share, logp))


@pytest.mark.parametrize("level", LEVELS)
def test_padding_does_not_leak(level: str) -> None:
    logp, rollout_logp, adv, mask = batch()
    mask[2] = False
    options = dict(level=level, mask=mask, dual=3.0, **CLIP)
    clean, metrics = clipped_loss(logp, rollout_logp, adv, **options)
    dirty = logp.detach().masked_fill(~mask, math.nan).requires_grad_()
    per_decision = adv[:, None].expand_as(logp).masked_fill(~mask, math.nan)
    loss, seen = clipped_loss(dirty, rollout_logp.masked_fill(~mask, math.inf), per_decision, **options)
    assert torch.equal(loss, clean) and not loss[~mask].any()
    torch.testing.assert_close(gradient(loss, dirty), gradient(clean, logp))
    for name, value in metrics.items():
        assert torch.equal(seen[name], value)
        assert value.ndim == 0 or not value[~mask].any()
        assert not value.requires_grad


def test_a_huge_ratio_leaves_no_nan_where_it_has_no_say() -> None:
    logp = torch.tensor([[200.0], [200.0], [200.0]], requires_grad=True)
    loss, _ = clipped_loss(logp, torch.zeros(3, 1), torch.tensor([1.0, 0.0, -1.0]), dual=3.0, **CLIP)
    torch.testing.assert_close(loss[:, 0], torch.tensor([-1.3, 0.0, 3.0]))
    assert torch.equal(gradient(loss, logp), torch.zeros(3, 1))


def test_the_log_ratio_limit_bounds_value_and_gradient() -> None:
    logp = torch.tensor([[30.0], [1.0]], requires_grad=True)
    loss, _ = clipped_loss(logp, torch.zeros(2, 1), -torch.ones(2), log_ratio_limit=20.0, **CLIP)
    torch.testing.assert_close(loss[:, 0], torch.tensor([20.0, 1.0]).exp())
    assert gradient(loss, logp)[0] == 0


def test_only_the_current_log_prob_is_differentiated() -> None:
    logp, rollout_logp, adv, _ = batch()
    rollout_logp.requires_grad_(), adv.requires_grad_()
    loss, _ = clipped_loss(logp, rollout_logp, adv, **CLIP)
    assert torch.autograd.grad(loss.sum(), (rollout_logp, adv), allow_unused=True) == (None, None)


def test_advantages_may_differ_per_decision() -> None:
    logp, rollout_logp, adv, _ = batch()
    rows, _ = clipped_loss(logp, rollout_logp, adv, **CLIP)
    decisions, _ = clipped_loss(logp, rollout_logp, adv[:, None].expand_as(logp), **CLIP)
    assert torch.equal(rows, decisions)


def test_approx_kl_is_the_divergence_of_the_behaviour_from_the_policy() -> None:
    rollout_logp = torch.tensor([1.0, 0.2, -0.3], dtype=torch.float64).log_softmax(0)
    logp = torch.tensor([0.3, 0.4, -0.8], dtype=torch.float64).log_softmax(0)
    _, metrics = clipped_loss(logp[None], rollout_logp[None], torch.ones(1), **CLIP)
    kl = (rollout_logp.exp() * (rollout_logp - logp)).sum()
    torch.testing.assert_close((rollout_logp.exp() * metrics["approx_kl"]).sum(), kl)
    torch.testing.assert_close((rollout_logp.exp() * -metrics["log_ratio"]).sum(), kl)


def test_errors() -> None:
    x, adv = torch.zeros(1, 1), torch.ones(1)
    for options, message in (
        (dict(CLIP, level="sequence"), "choose one of token"),
        (dict(CLIP, dual=1.0), "must exceed 1"),
        (dict(clip_low=1.1, clip_high=0.2), "clip_low=1.1"),
        (dict(clip_low=0.1, clip_high=-0.2), "clip_high=-0.2"),
    ):
        with pytest.raises(ValueError, match=message):
            clipped_loss(x, x, adv, **options)
