"""Solvers against closed forms, against each other, against diffusers', and the orders at which they converge."""

import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from samplers.plan import SOLVERS
from samplers.renoising import ddim
from samplers.solvers import dpm_solver, solver_step
from samplers.transitions import ode
from step_support import MU, S0, draw, field

LEVELS = (0.9, 0.7, 0.45, 0.3)


def half_log_ratio(s: float) -> float:
    return math.log((1 - s) / s)


def even_in_lambda(start: float, end: float, num_steps: int) -> list[float]:
    ends = torch.linspace(half_log_ratio(start), half_log_ratio(end), num_steps + 1, dtype=torch.float64)
    return torch.sigmoid(-ends).tolist()


def exact(x: Tensor, s: float, s_next: float) -> Tensor:
    """The map of the probability-flow ODE on Gaussian data."""
    spread = [math.sqrt((1 - level) ** 2 * S0**2 + level**2) for level in (s, s_next)]
    return (1 - s_next) * MU + spread[1] / spread[0] * (x - (1 - s) * MU)


def walk(x: Tensor, table: list[float], order: int, *, of_noise: bool = False, heun: bool = False) -> Tensor:
    """The walk after the first order - 1 steps, which are exact, since a start of order 1 costs O(h^2)."""
    history: list[tuple[Tensor, float]] = []
    for k, (s, s_next) in enumerate(zip(table, table[1:], strict=False)):
        v = field(x, s)
        history = [(x + (1 - s) * v if of_noise else x - s * v, s), *history][:order]
        if k < order - 1:
            x = exact(x, s, s_next)
        else:
            x = dpm_solver(x, history, s, s_next, heun=heun, of_noise=of_noise).mean
    return x


@pytest.mark.parametrize(
    ("order", "form"),
    [
        (1, {}),
        (2, {}),
        (2, {"heun": True}),
        (3, {}),
        (1, {"of_noise": True}),
        (2, {"of_noise": True}),
        (2, {"of_noise": True, "heun": True}),
        (3, {"of_noise": True}),
    ],
)
def test_the_order_on_the_interior(order: int, form: dict[str, bool]) -> None:
    x = torch.tensor([[-1.0, 0.3, 2.0]], dtype=torch.float64)
    errors = []
    for num_steps in (256, 512):
        table = even_in_lambda(0.9, 0.2, num_steps)
        errors.append((walk(x, table, order, **form) - exact(x, 0.9, 0.2)).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.06)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_order_of_a_named_solver(name: str) -> None:
    x, errors = torch.tensor([[-1.0, 0.3, 2.0]], dtype=torch.float64), []
    for num_steps in (128, 256):
        table, y, previous = even_in_lambda(0.95, 0.05, num_steps), x, None
        for s, s_next in zip(table, table[1:], strict=False):
            x0 = y - s * field(y, s)
            y, previous = solver_step(name, y, x0, s, s_next, previous), (x0, s)
        errors.append((y - exact(x, 0.95, 0.05)).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1 if name == "euler" else 2, abs=0.05)


def test_a_name_stands_for_its_form() -> None:
    x, x0, old = (draw(seed, 2, 6) for seed in range(3))
    for name, heun in (("dpmpp_2m", False), ("dpmpp_2m_heun", True)):
        want = dpm_solver(x, [(x0, 0.7), (old, 0.9)], 0.7, 0.45, heun=heun).mean
        assert torch.equal(solver_step(name, x, x0, 0.7, 0.45, (old, 0.9)), want)


@pytest.mark.parametrize("s", [1.0, 0.7])
@pytest.mark.parametrize("s_next", [0.45, 0.0])
def test_order_one_is_the_euler_step(s: float, s_next: float) -> None:
    x, v = draw(0, 3, 4, 5), draw(1, 3, 4, 5)
    want = ode(x, v, s, s_next).mean
    for name in SOLVERS:
        torch.testing.assert_close(solver_step(name, x, x - s * v, s, s_next), want, atol=1e-6, rtol=1e-6)
    if s < 1 and s_next > 0:
        noise_form = dpm_solver(x, [(x + (1 - s) * v, s)], s, s_next, of_noise=True)
        torch.testing.assert_close(noise_form.mean, want, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("heun", [False, True])
def test_the_last_step_and_the_step_after_pure_noise_are_of_order_one(heun: bool) -> None:
    x, x0, old = draw(0, 2, 6), draw(1, 2, 6), draw(2, 2, 6)
    assert torch.equal(dpm_solver(x, [(x0, 0.3), (old, 0.5)], 0.3, 0.0, heun=heun).mean, x0)
    after_noise = dpm_solver(x, [(x0, 0.8), (old, 1.0)], 0.8, 0.5, heun=heun).mean
    assert torch.equal(after_noise, dpm_solver(x, [(x0, 0.8)], 0.8, 0.5).mean)


def of_lambda(s: float, *powers: float) -> float:
    return sum(p * half_log_ratio(s) ** k for k, p in enumerate(powers))


@pytest.mark.parametrize(
    ("powers", "order", "heun"), [((0.7,), 2, False), ((0.7, -0.4), 2, True), ((0.7, -0.4, 0.3), 3, True)]
)
def test_polynomials_in_lambda_are_solved_exactly(powers: tuple[float, ...], order: int, heun: bool) -> None:
    # x(s') = (s' / s) x + s' * integral of exp(lambda) x0(lambda) over the step, here by Simpson's rule
    s, s_next = LEVELS[2], LEVELS[3]
    grid = torch.linspace(half_log_ratio(s), half_log_ratio(s_next), 2001, dtype=torch.float64)
    values = grid.exp() * sum(p * grid**k for k, p in enumerate(powers))
    weights = torch.ones_like(grid)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    integral = (weights * values).sum().item() * (grid[1] - grid[0]).item() / 3
    x = draw(0, 2, 3).double()
    history = [(torch.full_like(x, of_lambda(level, *powers)), level) for level in reversed(LEVELS[:3])][:order]
    got = dpm_solver(x, history, s, s_next, heun=heun).mean
    torch.testing.assert_close(got, s_next / s * x + s_next * integral, atol=1e-9, rtol=1e-9)


def test_the_sde_form_of_order_one_is_ddim_with_all_noise() -> None:
    x, v = draw(0, 2, 6).double(), draw(1, 2, 6).double()
    for s, s_next in ((1.0, 0.8), (0.7, 0.45), (0.3, 0.0)):
        got, want = dpm_solver(x, [(x - s * v, s)], s, s_next, sde=True), ddim(x, v, s, s_next, noise=1.0)
        torch.testing.assert_close((got.mean, got.std), (want.mean, want.std), atol=1e-7, rtol=1e-7)


@pytest.mark.filterwarnings("ignore:.*algorithm_type dpmsolver:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*algorithm_type sde-dpmsolver:FutureWarning")
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"])
def test_a_walk_is_that_of_diffusers(solver_type: str, algorithm: str) -> None:
    of_noise = not algorithm.endswith("++")
    scheduler = DPMSolverMultistepScheduler(
        solver_type=solver_type,
        algorithm_type=algorithm,
        prediction_type="epsilon" if of_noise else "flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
        final_sigmas_type="sigma_min" if of_noise else "zero",
    )
    scheduler.set_timesteps(8)
    form = {"heun": solver_type == "heun", "sde": algorithm.startswith("sde"), "of_noise": of_noise}
    table, x = scheduler.sigmas.tolist(), draw(0, 2, 6)
    y, history = x, []
    for k, (s, s_next) in enumerate(zip(table, table[1:], strict=False)):
        noise, v = draw(k + 1, 2, 6), field(y, s)
        output = y + (1 - s) * v if of_noise else v
        y = scheduler.step(output, scheduler.timesteps[k], y, variance_noise=noise, return_dict=False)[0]
        v = field(x, s)
        history = [(x + (1 - s) * v if of_noise else x - s * v, s), *history][: 1 if k == len(table) - 2 else 2]
        x = dpm_solver(x, history, s, s_next, **form).sample(noise)
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SOLVERS)
def test_levels_may_differ_between_tokens(name: str) -> None:
    x, x0, old = (draw(seed, 2, 3, 5) for seed in range(3))
    before, s, s_next = (
        torch.tensor(levels).reshape(2, 3, 1)
        for levels in ([1.0, 0.9, 0.8, 1.0, 0.6, 0.0], [0.9, 0.8, 0.8, 1.0, 0.5, 0.0], [0.7, 0.8, 0.5, 0.9, 0.0, 0.0])
    )
    got = solver_step(name, x, x0, s, s_next, (old, before))
    for at in ((row, token) for row in range(2) for token in range(3)):
        a, b, c = (level[at].item() for level in (before, s, s_next))
        # a token that rested, or that is still pure noise, has no slope: its step is of order one
        previous = (old[at], a) if a > b else None
        want = solver_step(name, x[at], x0[at], b, c, previous)
        torch.testing.assert_close(got[at], want, atol=1e-5, rtol=1e-5)
        if b == c:
            assert torch.equal(got[at], x[at])


def test_narrow_inputs_are_widened_and_the_gradient_passes() -> None:
    x, x0 = draw(0, 2, 6).bfloat16(), draw(1, 2, 6).bfloat16().requires_grad_()
    out = solver_step("dpmpp_2m", x, x0, 0.7, 0.45, (draw(2, 2, 6).bfloat16(), 0.9))
    assert out.dtype == torch.float32
    (grad,) = torch.autograd.grad(out.sum(), x0)
    h, before = half_log_ratio(0.45) - half_log_ratio(0.7), half_log_ratio(0.7) - half_log_ratio(0.9)
    want = (1 - 0.45 / 0.7) * (1 + 0.5 * h / before)
    torch.testing.assert_close(grad.float(), torch.full((2, 6), want), atol=1e-3, rtol=1e-3)


def test_unknown_solvers_and_histories_are_named() -> None:
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="solver 'heun': choose one of euler, dpmpp_2m, dpmpp_2m_heun"):
        solver_step("heun", x, x, 0.7, 0.5)
    with pytest.raises(ValueError, match="a history of 3 predictions.*1 to 2 for the SDE form"):
        dpm_solver(x, [(x, 0.7)] * 3, 0.7, 0.5, sde=True)
