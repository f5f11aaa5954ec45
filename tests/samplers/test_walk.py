"""Whole walks of data whose flow is known in closed form: Gaussian data stays Gaussian at every level."""

import pytest
import torch
from torch import Tensor

from samplers import schedules
from samplers.transitions import dance_sde, flow_sde, ode
from samplers.walk import walk

SPREAD = 0.5  # std of the data, around 0


def velocity(x: Tensor, s: float) -> Tensor:
    """E[eps - x_0 | x_s = x] for x_0 ~ N(0, SPREAD^2)."""
    variance = (1 - s) ** 2 * SPREAD**2 + s * s
    return x * (s - (1 - s) * SPREAD**2) / variance


def start(rows: int = 4, width: int = 4096) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_ode_carries_noise_to_data():
    errors = []
    for steps in (100, 200, 400):
        x, drawn = walk(velocity, start(), schedules.linear(steps))
        assert drawn == []
        errors.append((x - start() * SPREAD).abs().max().item())  # every point keeps its quantile
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)  # Euler: half the step, half the error
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(("transition", "noise"), [(flow_sde, 0.7), (dance_sde, 0.3)])
def test_drawing_keeps_the_marginals(transition, noise: float):
    """The claim behind all of these samplers: noise along the way leaves the distribution at its end alone."""
    generator = torch.Generator().manual_seed(1)
    levels = schedules.linear(400)
    x, drawn = walk(velocity, start(), levels, transition, noise=noise, stochastic=range(1, 395), generator=generator)
    assert len(drawn) == 394 and x.std().item() == pytest.approx(SPREAD, rel=0.03)
    assert abs(torch.corrcoef(torch.stack([x.flatten(), start().flatten()]))[0, 1]) < 0.9  # it did draw
    for d in drawn[::97]:  # and at every level between
        level = ((1 - d.s) ** 2 * SPREAD**2 + d.s**2) ** 0.5
        assert d.x.std().item() == pytest.approx(level, rel=0.03)


def test_a_replay_scores_what_was_drawn_bit_for_bit_row_by_row():
    levels = schedules.shifted(6, 3.0)
    options = {"noise": 0.7, "s_cap": levels.tolist()[1]}
    _, drawn = walk(velocity, start(3, 8), levels, flow_sde, noise=0.7, stochastic=(0, 2))
    assert [d.index for d in drawn] == [0, 2]
    for d in drawn:
        for row in range(3):
            x = d.x[row : row + 1]
            again = flow_sde(x, velocity(x, d.s), d.s, d.s_next, **options)
            assert torch.equal(again.log_prob(d.x_next[row : row + 1]), d.step.log_prob(d.x_next)[row : row + 1])


def test_without_noise_every_transition_is_the_ode():
    for transition in (flow_sde, dance_sde):
        with_noise, _ = walk(velocity, start(2, 8), schedules.linear(5), transition, stochastic=range(5))
        assert torch.equal(with_noise, walk(velocity, start(2, 8), schedules.linear(5), ode)[0])
