"""The gates against their formulas, decision by decision: rows of unequal length, masked padding, far log-ratios."""

import math

import pytest
import torch
from torch import Tensor

from flowrl.contracts import Batch, LogProbs
from flowrl.core.objectives.gates import GATES, Gate
from flowrl.core.objectives.grpo import ClippedObjective

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
ADV = torch.tensor([1.0, -2.0, 0.5, 3.0])


def seen(gate: str, logp: Tensor, adv: Tensor = ADV, **more: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """(loss, gradient of its sum, metrics) with what was drawn at log-prob -1 each; padding holds NaN."""
    logp = logp.clone().masked_fill(~MASK, torch.nan).requires_grad_()
    rollout = torch.full_like(logp, -1.0).masked_fill(~MASK, torch.nan).detach()
    objective = ClippedObjective(0.2, 0.2, gate=gate, **more)
    loss, metrics = objective(LogProbs(torch.arange(4), torch.arange(4), logp), Batch(rollout, adv, MASK))
    return loss.detach(), torch.autograd.grad(loss.sum(), logp)[0], metrics


def moved() -> Tensor:
    return -1.0 + torch.linspace(-0.6, 0.6, 16).reshape(4, 4)


@pytest.mark.parametrize("gate", GATES)
def test_at_the_policy_that_drew_all_have_the_policy_gradient(gate: str):
    _, grad, metrics = seen(gate, torch.full((4, 4), -1.0))
    wanted = (-ADV[:, None] * MASK).float()
    if gate == "log_clip_then_mean":  # each of n decisions has 1 / n of the row's gradient, n times
        assert torch.allclose(grad, wanted)
    assert torch.allclose(grad, wanted, atol=1e-6)
    assert metrics["clip_frac"].sum() == 0


@pytest.mark.parametrize("gate", GATES)
def test_padding_and_far_ratios_leave_no_nan(gate: str):
    logp = moved()
    logp[2, 1], logp[0, 0] = 200.0, -300.0
    for adv in (ADV, -ADV, torch.zeros(4)):
        loss, grad, metrics = seen(gate, logp, adv, **({"dual": 3.0} if gate in ("ppo", "inverse") else {}))
        assert not grad.isnan().any() and (grad[~MASK] == 0).all() and (loss[~MASK] == 0).all()
        assert all(not value.isnan().any() for value in metrics.values())


def test_the_third_row_of_each():
    """A = 0.5, three decisions: gradients by hand."""
    logp = moved()
    r = (logp[2, :3] + 1).exp()
    _, grad, metrics = seen("is_clip", logp)
    assert torch.allclose(grad[2, :3], -0.5 * r.clamp(0.8, 1.2)) and metrics["clip_frac"][2].tolist() == [0, 0, 1, 0]
    _, grad, _ = seen("sigmoid", logp, tau_pos=2.0)
    flat = torch.sigmoid(2 * (r - 1))
    assert torch.allclose(grad[2, :3], -0.5 * 4 * flat * (1 - flat) * r)
    _, grad, _ = seen("gamma", logp, k_pos=2.0, lambda_pos=3.0)
    assert torch.allclose(grad[2, :3], -0.5 * (3 + 2 * r.log() - 3 * r).exp())
    _, grad, _ = seen("log_clip_then_mean", logp)
    d = logp[2, :3] + 1
    geometric = d.clamp(max=0.2).mean().exp()
    assert torch.allclose(grad[2, :3], -0.5 * geometric * (d <= 0.2))


def test_the_inverse_gate_strengthens_what_became_less_likely():
    """ASPO: where A > 0 the gradient is -A / r up to dual, and none beyond the clip; where A < 0 that of the clip."""
    logp = moved() * 3 + 2
    _, grad, metrics = seen("inverse", logp, dual=3.0)
    r = (logp[0] + 1).exp()
    assert torch.allclose(grad[0], -(1 / r).clamp(max=3.0)) and (1 / r > 3).any() and (1 / r < 3).any()
    assert grad[2].tolist()[1:] == [0.0, 0.0, 0.0] and metrics["clip_frac"][2].tolist() == [0, 1, 1, 0]
    _, clipped, _ = seen("ppo", logp, dual=3.0)
    assert torch.equal(grad[1], clipped[1])


def test_a_row_s_ratio_and_an_unknown_gate():
    logp = moved()
    _, grad, _ = seen("is_clip", logp, level="seq_mean")
    assert torch.allclose(grad[2, :3], torch.full((3,), -0.5 * min(1.2, math.exp(float((logp[2, :3] + 1).mean())))))
    assert ClippedObjective(0.2, 0.2, gate="log_clip_then_mean").together == "row"
    with pytest.raises(ValueError, match="gate 'soft': choose one of ppo, pg"):
        Gate("soft", 0.2, 0.2)
