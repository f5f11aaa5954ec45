"""Steps that recombine x_0 and eps: coefficients, posteriors at noise 1, predictions of DDPM models."""

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samplers.predictions import PREDICTIONS, clean_from, velocity_from
from samplers.renoising import cps, ddim, signal, vp_ddim
from samplers.transitions import ode
from step_support import LEVELS, MU, S0, draw, walk_moments

SIGNALS = {cps: lambda s: 1 - s, ddim: lambda s: 1 - s, vp_ddim: lambda s: math.sqrt(1 - s * s)}
SHARES = st.floats(0, 1)


def coefficients(step: Callable, s: float, s_next: float, noise: float) -> tuple[float, float, float]:
    """What the next latent holds of x_0 and of eps, and its std, by probing with (x_0, eps) = (1, 0) and (0, 1)."""
    x0, eps = torch.eye(2, dtype=torch.float64)[:, :, None]
    x = SIGNALS[step](s) * x0 + s * eps
    out = step(x, eps - x0, s, s_next, noise=noise)
    return out.mean[0].item(), out.mean[1].item(), out.std.item()


@pytest.mark.parametrize("step", SIGNALS)
@settings(deadline=None)
@given(ends=st.tuples(SHARES, SHARES), noise=SHARES)
def test_signal_and_noise_keep_their_coefficients(step: Callable, ends: tuple[float, float], noise: float) -> None:
    s_next, s = sorted(ends)
    of_x0, of_eps, std = coefficients(step, s, s_next, noise)
    assert of_x0 == pytest.approx(SIGNALS[step](s_next), abs=1e-7)
    assert math.hypot(of_eps, std) == pytest.approx(s_next, abs=1e-7)


@pytest.mark.parametrize("noise", [0.0, 0.3, 0.8, 1.0])
def test_cps_turns_part_of_the_noise(noise: float) -> None:
    _, of_eps, std = coefficients(cps, 0.7, 0.45, noise)
    assert of_eps == pytest.approx(0.45 * math.cos(noise * math.pi / 2), abs=1e-12)
    assert std == pytest.approx(0.45 * math.sin(noise * math.pi / 2), abs=1e-12)


@pytest.mark.parametrize("step", [ddim, vp_ddim])
@pytest.mark.parametrize(("s", "s_next"), [(1.0, 0.8), (0.999, 0.998), (0.7, 0.45), (0.3, 0.29), (0.2, 0.0)])
def test_at_noise_one_the_step_is_the_posterior_of_the_forward_chain(step: Callable, s: float, s_next: float) -> None:
    # x_s = c x_next + sqrt(s^2 - c^2 s_next^2) z with c the ratio of signals: q(x_next | x_s, x_0) by Bayes' rule
    a, a_next = SIGNALS[step](s), SIGNALS[step](s_next)
    c = a / a_next
    forward = s**2 - c**2 * s_next**2
    of_x0, of_eps, std = coefficients(step, s, s_next, 1.0)
    assert std == pytest.approx(math.sqrt(s_next**2 * forward) / s, abs=1e-9)
    gain = c * s_next**2 / s**2  # of x_s in the posterior mean
    assert of_eps == pytest.approx(gain * s, abs=1e-7)
    assert of_x0 == pytest.approx(a_next * forward / s**2 + gain * a, abs=1e-7)


@pytest.mark.parametrize("step", [ddim, vp_ddim])
@settings(deadline=None)
@given(ends=st.tuples(SHARES, SHARES), noise=SHARES)
def test_the_std_is_its_share_of_the_posterior_one(step: Callable, ends: tuple[float, float], noise: float) -> None:
    s_next, s = sorted(ends)
    whole, part = (coefficients(step, s, s_next, share)[2] for share in (1.0, noise))
    assert part == pytest.approx(noise * whole, abs=1e-7)


@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_many_steps_keep_the_marginals_of_variance_preserving_coordinates(noise: float) -> None:
    table = torch.linspace(1, 0, 4097, dtype=torch.float64).mul(math.pi / 2).sin().tolist()
    mean, variance = walk_moments(vp_ddim, table, noise, signal)
    assert mean == pytest.approx(MU, abs=1e-3)
    assert variance == pytest.approx(S0**2, abs=1e-3)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_ddim_is_that_of_diffusers(prediction_type: str, eta: float) -> None:
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type=prediction_type,
    )
    scheduler.set_timesteps(20)
    kept = scheduler.alphas_cumprod.double()
    for seed, t in enumerate(scheduler.timesteps.tolist()):
        x, output, noise = (draw(seed + shift, 2, 4, 3) for shift in (0, 100, 200))
        s, s_next = math.sqrt(1 - kept[t]), math.sqrt(1 - kept[max(t - 50, 0)])
        got = vp_ddim(x, velocity_from(prediction_type, x, output, s), s, s_next, noise=eta)
        want = scheduler.step(output, t, x, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(got.sample(noise), want, atol=1e-4, rtol=1e-4)


@settings(deadline=None)
@given(s=st.floats(0.01, 0.995))
def test_every_prediction_of_the_same_pair_is_the_same_velocity(s: float) -> None:
    x0, eps = draw(0, 3, 5).double(), draw(1, 3, 5).double()
    a = math.sqrt(1 - s * s)
    x, outputs = a * x0 + s * eps, {"epsilon": eps, "sample": x0, "v_prediction": a * eps - s * x0}
    for name in PREDICTIONS:
        v = velocity_from(name, x, outputs[name], s)
        torch.testing.assert_close(v, eps - x0, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(clean_from(x, v, s), x0, atol=1e-9, rtol=1e-9)


def test_predictions_are_widened_and_carry_the_gradient() -> None:
    x, output = draw(0, 2, 6).bfloat16(), draw(1, 2, 6).bfloat16().requires_grad_()
    v = velocity_from("epsilon", x, output, torch.full((2, 1), 0.6, dtype=torch.float64))
    assert v.dtype == torch.float32
    (grad,) = torch.autograd.grad(v.sum(), output)
    torch.testing.assert_close(grad.float(), torch.full((2, 6), 1.75), atol=1e-3, rtol=0)


def test_an_unknown_prediction_is_named() -> None:
    with pytest.raises(ValueError, match="prediction_type='flow'.*epsilon, v_prediction, sample"):
        velocity_from("flow", torch.zeros(1), torch.zeros(1), 0.5)


@pytest.mark.parametrize("kind", ["scalar", "row", "token"])
def test_variance_preserving_levels_may_be_tensors(kind: str) -> None:
    s, s_next = (torch.as_tensor(level, dtype=torch.float64).expand(3, 4, 1) for level in LEVELS[kind][:2])
    x, v = draw(0, 3, 4, 5), draw(1, 3, 4, 5)
    out = vp_ddim(x, v, s, s_next, noise=0.7)
    assert out.mean.dtype == out.std.dtype == torch.float32
    for at in ((0, 0), (1, 2), (2, 3)):
        want = vp_ddim(x[at], v[at], s[at].item(), s_next[at].item(), noise=0.7)
        torch.testing.assert_close((out.mean[at], out.std[at].squeeze()), (want.mean, want.std), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("s", [1.0, 0.7, 0.0, torch.tensor([[1.0], [0.0]])])
def test_variance_preserving_steps_rest(s: float | Tensor) -> None:
    x, v = draw(0, 2, 6), draw(1, 2, 6)
    out = vp_ddim(x, v, s, s, noise=0.7)
    assert torch.equal(out.mean, x) and not out.std.any()


@pytest.mark.parametrize("step", [cps, ddim])
def test_the_last_step_lands_on_the_prediction_of_x0(step: Callable) -> None:
    x, v = draw(0, 2, 6), draw(1, 2, 6)
    out = step(x, v, 0.3, 0.0, noise=0.8)
    assert torch.equal(out.mean, ode(x, v, 0.3, 0.0).mean) and out.std == 0


@pytest.mark.parametrize("step", SIGNALS)
@pytest.mark.parametrize("noise", [-0.1, 1.2])
def test_more_noise_than_there_is_is_refused(step: Callable, noise: float) -> None:
    with pytest.raises(ValueError, match=f"noise={noise} of {step.__name__}: give 0 .* to 1"):
        step(torch.zeros(1, 1), torch.zeros(1, 1), 0.7, 0.5, noise=noise)


def test_cps_is_scored_by_the_square_alone() -> None:
    assert cps.unit_variance and not hasattr(ddim, "unit_variance")
