"""Optimizer steps, learning-rate schedules, moving averages, and their state."""

import math

import pytest
import torch
from torch import nn

from flowrl.core.learning.learner import Learner


def stepped(learner: Learner, times: int) -> list[float]:
    """Learning rates of so many steps on a gradient of ones."""
    rates = []
    for _ in range(times):
        for p in learner.parameters:
            p.grad = torch.ones_like(p)
        rates.append(learner.lr)
        learner.step()
    return rates


def make(**options: object) -> Learner:
    return Learner([nn.Parameter(torch.zeros(3))], lr=0.1, weight_decay=0.0, **options)


def test_schedules():
    assert stepped(make(), 3) == pytest.approx([0.1] * 3)
    assert stepped(make(warmup=4, total=8), 6) == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    assert stepped(make(schedule="linear", total=4), 5) == pytest.approx([0.1, 0.075, 0.05, 0.025, 0.0])
    cosine = [0.05 * (1 + math.cos(math.pi * k / 4)) for k in range(5)]
    assert stepped(make(schedule="cosine", total=4), 5) == pytest.approx(cosine)


def test_optimizers_by_name():
    ends = {}
    for name, eps in (("adamw", 1e-8), ("adamw_fused", 1e-8), ("adamw", 1.0)):
        learner = make(optimizer=name, eps=eps, max_grad_norm=None)
        stepped(learner, 3)
        ends[name, eps] = learner.parameters[0].detach()
        again = make(optimizer=name, eps=eps)
        again.load_state_dict(learner.state_dict())
        assert again.steps == 3
    torch.testing.assert_close(ends["adamw", 1e-8], ends["adamw_fused", 1e-8])
    torch.testing.assert_close(ends["adamw", 1.0], ends["adamw", 1e-8] / 2, rtol=1e-5, atol=0)  # 1 / (1 + eps)
    with pytest.raises(ValueError, match="choose one of adamw, adamw_fused, adamw_8bit"):
        make(optimizer="adam")


def test_a_base_rate_that_changes_is_scheduled_and_lowered_like_a_constant():
    learner = make(warmup=2)
    learner.base_lr = lambda steps: 0.1 + 0.1 * steps
    assert stepped(learner, 3) == pytest.approx([0.05, 0.2, 0.3])
    learner.lower(0.5)
    assert stepped(learner, 2) == pytest.approx([0.2, 0.25])


def test_clipping_bounds_the_step_and_reports_the_norm_before():
    learner = make(max_grad_norm=0.5)
    learner.parameters[0].grad = torch.full((3,), 4.0)
    assert float(learner.step()) == pytest.approx(4 * 3**0.5)
    clipped, free = make(max_grad_norm=1e-12), make(max_grad_norm=None)
    for one in (clipped, free):
        one.parameters[0].grad = torch.full((3,), 4.0)
        one.step()
    # Adam's first step is lr * g / (|g| + 1e-8): a gradient clipped far below 1e-8 hardly moves
    assert clipped.parameters[0].abs().max() < 1e-3 < free.parameters[0].abs().max()


def test_average_follows_and_is_swapped_in_and_out():
    learner = make(average=0.5, average_every=2)
    seen, average = [], torch.zeros(3)
    for k in range(1, 7):
        stepped(learner, 1)
        if k % 2 == 0:
            decay = min(0.5, (1 + k // 2) / (10 + k // 2))
            average = decay * average + (1 - decay) * learner.parameters[0].detach()
        seen.append(learner.parameters[0].detach().clone())
    torch.testing.assert_close(learner.average[0], average)
    with torch.no_grad(), learner.using_average():
        torch.testing.assert_close(learner.parameters[0].detach(), average)
    torch.testing.assert_close(learner.parameters[0].detach(), seen[-1])


def test_state_goes_on_bit_for_bit():
    whole, first = make(average=0.9, warmup=3, schedule="cosine", total=9), None
    first = make(average=0.9, warmup=3, schedule="cosine", total=9)
    stepped(whole, 6)
    stepped(first, 4)
    second = make(average=0.9, warmup=3, schedule="cosine", total=9)
    with torch.no_grad():
        second.parameters[0].copy_(first.parameters[0])
    second.load_state_dict(first.state_dict())
    stepped(second, 2)
    assert torch.equal(second.parameters[0], whole.parameters[0])
    assert torch.equal(second.average[0], whole.average[0]) and second.lr == whole.lr


def test_lowering_multiplies_every_later_rate_and_survives_a_resume():
    learner = make(schedule="linear", total=4)
    assert stepped(learner, 2) == pytest.approx([0.1, 0.075])
    learner.lower(0.5)
    assert learner.lr == pytest.approx(0.025)
    again = make(schedule="linear", total=4)
    again.load_state_dict(learner.state_dict())
    assert again.lr == learner.lr
    assert stepped(again, 2) == stepped(learner, 2) == pytest.approx([0.025, 0.0125])
    other = make()
    other.lower(0.5)
    other.lower(0.5)
    assert stepped(other, 2) == pytest.approx([0.025, 0.025])
    for factor in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="lowered"):
            learner.lower(factor)


def test_a_lowered_rate_is_the_one_that_the_weights_move_by():
    whole, half = make(), make()
    half.lower(0.5)
    for one in (whole, half):
        stepped(one, 1)
    torch.testing.assert_close(half.parameters[0].detach(), 0.5 * whole.parameters[0].detach(), atol=1e-7, rtol=0)


@pytest.mark.parametrize("ramp", ["moves", "steps"])
def test_a_ramp_counts_moves_or_optimizer_steps(ramp: str):
    """At step 80 of a recipe that moves every 8 steps, Flow-GRPO's decay is .9, that of the tenth move is .55."""
    learner = make(average=0.9, average_every=8, ramp=ramp)
    decays = {}
    for step in range(1, 81):
        before = learner.average[0].clone()
        stepped(learner, 1)
        now, weights = learner.average[0], learner.parameters[0].detach()
        if step % 8 == 0:
            decays[step] = float(((weights - now) / (weights - before))[0])
        else:
            assert torch.equal(now, before)
    count = {step: step if ramp == "steps" else step // 8 for step in decays}
    assert decays == pytest.approx({step: min(0.9, (1 + n) / (10 + n)) for step, n in count.items()}, abs=1e-4)
    assert decays[80] == pytest.approx(0.9 if ramp == "steps" else 0.55, abs=1e-4)


def test_an_unknown_ramp_is_refused():
    with pytest.raises(ValueError, match="choose one of moves, steps"):
        make(average=0.9, ramp="epochs")
