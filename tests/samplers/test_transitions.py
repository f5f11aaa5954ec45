"""Transitions against closed forms: exact moments on Gaussian data, the Euler limit, the first step, the marginals."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flowrl import names
from samplers import schedules
from samplers.renoising import cps, ddim
from samplers.transitions import dance_sde, flow_sde, ode, ve_sde, wan_sde
from step_support import LEVELS, MU, S0, draw, field, walk_moments

# The diffusion g^2 of each step that has one.
DIFFUSION = {
    flow_sde: lambda noise, s, cap: noise**2 * s / (1 - min(s, cap)),
    wan_sde: lambda noise, s, cap: (noise * cap * s) ** 2,
    dance_sde: lambda noise, s, cap: noise**2,
}
DRAWING = [*DIFFUSION, ve_sde, cps, ddim]


def levels(table: Tensor) -> list[float]:
    return table.tolist()


def recursion(step: Callable, table: list[float], noise: float) -> tuple[float, float]:
    """The same moments from the textbook form of the step: v dt + (g^2 / 2) score |dt| and g sqrt(|dt|)."""
    mean, variance = 0.0, 1.0
    for s, s_next in zip(table, table[1:], strict=False):
        size, total = s - s_next, (1 - s) ** 2 * S0**2 + s**2
        g2 = DIFFUSION[step](noise, s, table[1])
        slope = 1 - size * (s - (1 - s) * S0**2) / total - 0.5 * g2 * size / total
        mean = slope * (mean - (1 - s) * MU) + (1 - s) * MU + size * MU
        variance = slope**2 * variance + g2 * size
    return mean, variance


@pytest.mark.parametrize("noise", [0.0, 0.3, 0.7, 1.2])
@pytest.mark.parametrize("num_steps", [4, 10, 40])
@pytest.mark.parametrize("step", DIFFUSION)
def test_moments_on_gaussian_data(step: Callable, num_steps: int, noise: float) -> None:
    table = levels(schedules.flow_match_euler(num_steps, 3.0))
    mean, variance = walk_moments(step, table, noise)
    assert (mean, variance) == pytest.approx(recursion(step, table, noise), rel=1e-9)
    assert mean == pytest.approx(MU, abs=1e-6)


def test_sampled_moments_agree_with_the_recursion() -> None:
    table, noise, count = levels(schedules.flow_match_euler(10, 3.0)), 0.7, 200_000
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, count, generator=generator)
    for s, s_next in zip(table, table[1:], strict=False):
        x = flow_sde(x, field(x, s), s, s_next, noise=noise, s_cap=table[1]).sample(
            torch.randn(1, count, generator=generator)
        )
    mean, variance = recursion(flow_sde, table, noise)
    # five standard errors of a mean and of a variance
    assert abs(x.mean().item() - mean) < 5 * math.sqrt(variance / count)
    assert abs(x.var().item() - variance) < 5 * variance * math.sqrt(2 / count)


def test_many_steps_reach_the_data_variance() -> None:
    table = levels(schedules.shifted(4096, 3.0))
    for step in (ode, flow_sde, wan_sde, dance_sde, ddim):  # each is off by O(1 / 4096)
        assert walk_moments(step, table, 0.7)[1] == pytest.approx(S0**2, abs=2e-3)


def test_the_exploding_step_keeps_the_marginals() -> None:
    # x_s = x_0 + s eps: variance S0^2 + s^2, v = s (x - MU) / (S0^2 + s^2). First order in dt.
    gaps = []
    for num_steps in (4000, 8000):
        table = torch.logspace(1, -2, num_steps + 1, dtype=torch.float64).tolist()
        variance = S0**2 + table[0] ** 2
        probes = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        for s, s_next in zip(table, table[1:], strict=False):
            out = ve_sde(probes, s * (probes - MU) / (S0**2 + s**2), s, s_next, noise=0.8)
            variance = (out.mean[1] - out.mean[0]).item() ** 2 * variance + out.std.item() ** 2
        gaps.append(variance - (S0**2 + table[-1] ** 2))
    assert abs(gaps[1]) < 1e-3
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.02)


def test_the_exploding_step_reverses_the_forward_diffusion_at_noise_one() -> None:
    out = ve_sde(torch.zeros(1, 1), torch.ones(1, 1), 80.0, 70.0, noise=1.0)
    assert out.mean.item() == pytest.approx(-20.0)
    assert out.std.item() == pytest.approx(math.sqrt(2 * 80 * 10))


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("step", [*DRAWING, ode])
def test_without_noise_a_step_is_euler_bit_for_bit(step, kind: str, dtype: torch.dtype) -> None:
    s, s_next, s_cap = LEVELS[kind]
    x, v = draw(0, 3, 4, 5).to(dtype), draw(1, 3, 4, 5).to(dtype)
    out = step(x, v, s, s_next, noise=0.0, s_cap=s_cap)
    assert torch.equal(out.mean, x.float() + v.float() * (s_next - s))
    assert torch.equal(out.std, torch.zeros_like(out.std))
    assert out.mean.dtype == out.std.dtype == torch.float32


def test_noise_zero_on_one_row_leaves_the_others() -> None:
    x, v, noise = draw(0, 2, 4, 5), draw(1, 2, 4, 5), torch.tensor([0.7, 0.0]).reshape(2, 1, 1)
    out = flow_sde(x, v, 0.7, 0.45, noise=noise, s_cap=0.9)
    full, none = flow_sde(x, v, 0.7, 0.45, noise=0.7, s_cap=0.9), ode(x, v, 0.7, 0.45)
    torch.testing.assert_close(out.mean[0], full.mean[0])
    assert torch.equal(out.mean[1], none.mean[1])
    torch.testing.assert_close(out.std.flatten(), torch.stack([full.std, none.std]))


@pytest.mark.parametrize("step", DRAWING)
@pytest.mark.parametrize("noise", [0.7, torch.tensor(0.7)])
def test_elements_that_rest_are_left_alone(step, noise) -> None:
    s, s_next, s_cap = LEVELS["resting"]
    x, v = draw(0, 3, 4, 5), draw(1, 3, 4, 5)
    out = step(x, v, s, s_next, noise=noise, s_cap=s_cap)
    assert torch.equal(out.mean[1:], x[1:]) and torch.equal(out.std[1:], torch.zeros(2, 1, 1))
    assert out.std[0] > 0


@pytest.mark.parametrize("step", DRAWING)
@pytest.mark.parametrize("s", [1.0, 0.7, 0.0])
def test_a_step_between_equal_floats_rests(step, s: float) -> None:
    x, v = draw(0, 2, 6), draw(1, 2, 6)
    out = step(x, v, s, s, noise=0.7, s_cap=0.9)
    assert torch.equal(out.mean, x) and out.std == 0


@pytest.mark.parametrize("kind", ["scalar", "row", "token"])
@pytest.mark.parametrize("step", [*DRAWING, ode])
def test_tensor_levels_agree_with_float_levels(step, kind: str) -> None:
    s, s_next, s_cap = (torch.as_tensor(level) for level in LEVELS[kind])
    x, v = draw(0, 3, 4, 5), draw(1, 3, 4, 5)
    out = step(x, v, s, s_next, noise=0.7, s_cap=s_cap)
    mean, std = out.mean, out.std.expand_as(x)
    for row in range(3):
        for token in range(4):
            one = (slice(row, row + 1), slice(token, token + 1))
            a, b = (level.expand(3, 4, 1)[row, token].item() for level in (s, s_next))
            want = step(x[one], v[one], a, b, noise=0.7, s_cap=s_cap.item())
            torch.testing.assert_close(mean[one], want.mean, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(std[one], want.std.expand_as(mean[one]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("start", [1.0, 0.999999])
@pytest.mark.parametrize("num_steps", [2, 5, 10, 50])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_first_std_is_the_noise_level(num_steps: int, start: float, as_tensor: bool) -> None:
    table = schedules.shifted(num_steps, 3.0)
    table[0] = start
    s, s_next = (table[0], table[1]) if as_tensor else levels(table)[:2]
    out = flow_sde(torch.zeros(1, 1), torch.zeros(1, 1), s, s_next, noise=0.7, s_cap=s_next)
    assert out.std.item() == pytest.approx(0.7, abs=1e-4)


@pytest.mark.parametrize("s", [1.0, 0.95, 0.7])
def test_level_and_cap_may_be_float_or_tensor(s: float) -> None:
    x, v, given = draw(0, 2, 6), draw(1, 2, 6), {"noise": 0.7}
    want = flow_sde(x, v, s, 0.6, s_cap=0.9, **given)
    for level, cap in ((s, torch.tensor(0.9)), (torch.tensor(s), 0.9), (torch.tensor(s), torch.tensor(0.9))):
        got = flow_sde(x, v, level, 0.6, s_cap=cap, **given)
        torch.testing.assert_close((got.mean, got.std), (want.mean, want.std), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_the_cap_touches_no_step_but_the_first(noise: float) -> None:
    x, v = draw(0, 2, 6), draw(1, 2, 6)
    for s, s_next in ((0.9, 0.6), (0.6, 0.2), (0.2, 0.0)):
        capped = flow_sde(x, v, s, s_next, noise=noise, s_cap=0.9)
        g = noise * math.sqrt(s / (1 - s))
        torch.testing.assert_close(capped.std.item(), g * math.sqrt(s - s_next), atol=1e-6, rtol=1e-6)
        score = -(x + (1 - s) * v) / s
        want = x - (s - s_next) * v + 0.5 * g**2 * (s - s_next) * score
        torch.testing.assert_close(capped.mean, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("step", "slope"),
    [
        (ode, -0.25),
        (ve_sde, -0.25 * (1 + 0.49)),
        (flow_sde, -0.25 * (1 + 0.49 * 0.3 / (2 * 0.3))),
        (wan_sde, -0.25 * (1 + (0.7 * 0.9 * 0.7) ** 2 * 0.3 / (2 * 0.7))),
        (dance_sde, -0.25 * (1 + 0.49 * 0.3 / (2 * 0.7))),
        (cps, -0.7 * 0.55 + 0.3 * 0.45 * math.cos(0.35 * math.pi)),
    ],
)
def test_the_gradient_reaches_the_velocity_through_the_mean(step, slope: float) -> None:
    x, v = draw(0, 2, 6).bfloat16(), draw(1, 2, 6).requires_grad_()
    out = step(x, v, 0.7, 0.45, noise=0.7, s_cap=0.9)
    (grad,) = torch.autograd.grad(out.mean.sum(), v)
    torch.testing.assert_close(grad, torch.full_like(v, slope), atol=1e-5, rtol=1e-5)
    assert not out.std.requires_grad


def test_inputs_are_not_written_to() -> None:
    x, v = draw(0, 2, 6), draw(1, 2, 6)
    for step in (*DRAWING, ode):
        step(x, v, 0.7, 0.45, noise=0.7, s_cap=0.9)
    assert torch.equal(x, draw(0, 2, 6)) and torch.equal(v, draw(1, 2, 6))


def test_which_steps_draw() -> None:
    found = {name: step.stochastic for name, step in names.steps().items()}
    assert not found.pop("ode") and all(found.values()) and {step.__name__ for step in DRAWING} <= set(found)


@pytest.mark.parametrize("step", [*DRAWING, ode])
def test_a_step_upwards_is_refused(step) -> None:
    with pytest.raises(ValueError, match="s_next=0.8 is above s=0.7"):
        step(torch.zeros(1, 1), torch.zeros(1, 1), 0.7, 0.8, noise=0.3, s_cap=0.9)
