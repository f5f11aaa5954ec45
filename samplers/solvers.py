"""Solvers for deterministic stretches: the DPM-Solver family on a flow, whose signal is 1 - s and whose noise is s.

The half log signal-to-noise ratio is lambda(s) = log((1 - s) / s), from -inf at s = 1 to inf at s = 0; a step has the
length h = lambda(s_next) - lambda(s). Multistep solvers fit a polynomial in lambda to the last predictions. The first
step has no earlier one, and where h is infinite (s = 1, s_next = 0) there is no polynomial: both are of order 1.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from samplers.gaussian import Gaussian
from samplers.levels import Level

Known = tuple[Tensor, Level]  # a prediction and the level at which it was made
Solver = str | Callable[..., Tensor]  # a name of SOLVERS, or a function (x, x0, s, s_next, previous) -> the next latent


def euler(x: Tensor, x0: Tensor, s: Level, s_next: Level, previous: Known | None = None) -> Tensor:
    """The Euler step of the flow's ODE: first order, uses no earlier prediction."""
    return dpm_solver(x, [(x0, s)], s, s_next).mean


def dpmpp_2m(x: Tensor, x0: Tensor, s: Level, s_next: Level, previous: Known | None = None) -> Tensor:
    """DPM-Solver++(2M), the midpoint form (arXiv 2211.01095)."""
    return dpm_solver(x, _both(x0, s, previous), s, s_next).mean


def dpmpp_2m_heun(x: Tensor, x0: Tensor, s: Level, s_next: Level, previous: Known | None = None) -> Tensor:
    """DPM-Solver++(2M), the heun form: exact for a prediction linear in lambda."""
    return dpm_solver(x, _both(x0, s, previous), s, s_next, heun=True).mean


# name in a recipe -> its function
SOLVERS = {"euler": euler, "dpmpp_2m": dpmpp_2m, "dpmpp_2m_heun": dpmpp_2m_heun}


def solver_step(
    solver: Solver, x: Tensor, x0: Tensor, s: Level, s_next: Level, previous: Known | None = None
) -> Tensor:
    """The next latent [R, ...] by a solver, a name of SOLVERS or a function like them, in float32 or wider.

    x: latent [R, ...]. x0: this step's prediction x - s v. previous: the last step's prediction and its level, None at
    the first step. s, s_next: floats, or tensors broadcastable to x; elements with s_next == s rest.

    Raises ValueError for another name.
    """
    if not isinstance(solver, str):
        return solver(x, x0, s, s_next, previous)
    if solver not in SOLVERS:
        raise ValueError(f"solver {solver!r}: choose one of {', '.join(SOLVERS)}")
    return SOLVERS[solver](x, x0, s, s_next, previous)


def _both(x0: Tensor, s: Level, previous: Known | None) -> list[Known]:
    return [(x0, s)] if previous is None else [(x0, s), previous]


def dpm_solver(
    x: Tensor,
    history: Sequence[Known],
    s: Level,
    s_next: Level,
    *,
    heun: bool = False,
    sde: bool = False,
    of_noise: bool = False,
) -> Gaussian:
    """One multistep update of order len(history), 1 to 3: the next latent as a Gaussian, of std 0 unless `sde`.

    history: predictions of x_0 with their levels, newest first; the newest was made at s. That is DPM-Solver++ (arXiv
    2211.01095), whose order 1 is the Euler step of a flow. heun: the second-order form that is exact for a prediction
    linear in lambda, rather than the midpoint form. Order 3 builds on it; published code takes half of its last term
    there, and gains nothing over order 2. sde: draws on the way, and has no order 3.
    of_noise: the history predicts eps instead (DPM-Solver, arXiv 2206.00927); for 0 < s_next and s < 1.

    Raises ValueError for another length of the history.
    """
    if not 1 <= len(history) <= (2 if sde else 3):
        raise ValueError(f"a history of {len(history)} predictions: give 1 to 3, or 1 to 2 for the SDE form")
    now, later = _tensor(s), _tensor(s_next)
    h = _length(now, later)
    keep, gain, rate, std = (_of_noise if of_noise else _of_data)(now, later, h, sde)
    dtype = torch.promote_types(torch.promote_types(x.dtype, history[0][0].dtype), torch.float32)
    mean = x.to(dtype) * keep.to(dtype)
    weights = _weights(rate * h, len(history), heun)
    for weight, difference in zip(weights, _differences(history, h, dtype), strict=True):
        mean = mean + (gain * weight).to(dtype) * difference
    return Gaussian(mean, std.to(mean))


def _of_data(s: Tensor, s_next: Tensor, h: Tensor, sde: bool) -> tuple[Tensor, Tensor, float, Tensor]:
    """(weight of x, gain of the predictions, rate at which they count, std) where x_0 is predicted."""
    ratio = torch.where(s_next == s, 1.0, s_next / s)
    if not sde:
        return ratio, 1 - s_next, 1.0, torch.zeros_like(h)
    return ratio * (-h).exp(), 1 - s_next, 2.0, s_next * (-(-2 * h).expm1()).clamp(min=0).sqrt()


def _of_noise(s: Tensor, s_next: Tensor, h: Tensor, sde: bool) -> tuple[Tensor, Tensor, float, Tensor]:
    """The same where eps is predicted."""
    ratio = torch.where(s_next == s, 1.0, (1 - s_next) / (1 - s))
    if not sde:
        return ratio, s_next, -1.0, torch.zeros_like(h)
    return ratio, 2 * s_next, -1.0, s_next * (2 * h).expm1().clamp(min=0).sqrt()


def _weights(g: Tensor, order: int, heun: bool) -> list[Tensor]:
    """Weights of D0, D1, D2: the integrals of 1, t and t^2 / 2 times g exp(g (t - 1)), t from 0 to 1."""
    first = -(-g).expm1()
    safe = torch.where(g == 0, 1.0, g)
    second = torch.where(g == 0, 0.0, 1 - first / safe)  # exact for predictions linear in lambda
    third = torch.where(g == 0, 0.0, 0.5 - second / safe)
    if order == 2 and not heun:
        second = 0.5 * first
    return [first, second, third][:order]


def _differences(history: Sequence[Known], h: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """D0, D1, D2: the newest prediction, its slope in lambda there times h, its second derivative times h^2."""
    values = [value.to(dtype) for value, _ in history]
    levels = [_tensor(level) for _, level in history]
    if len(values) == 1:
        return values
    h0 = _length(levels[1], levels[0])
    slope = (values[0] - values[1]) * _finite(h / h0).to(dtype)
    if len(values) == 2:
        return [values[0], slope]
    h1 = _length(levels[2], levels[1])
    bend = slope - (values[1] - values[2]) * _finite(h / h1).to(dtype)
    return [values[0], slope + bend * _finite(h0 / (h0 + h1)).to(dtype), 2 * bend * _finite(h / (h0 + h1)).to(dtype)]


def _length(s: Tensor, s_next: Tensor) -> Tensor:
    """h = lambda(s_next) - lambda(s), 0 where the step rests."""
    return torch.where(s_next == s, 0.0, _half_log_ratio(s_next) - _half_log_ratio(s))


def _half_log_ratio(s: Tensor) -> Tensor:
    return ((1 - s) / s).log()


def _finite(ratio: Tensor) -> Tensor:
    # an infinite step has no slope to be scaled, and neither has what follows a step that rested
    return torch.where(ratio.isfinite(), ratio, 0.0)


def _tensor(level: Level) -> Tensor:
    """float64 for floats, whose rounding would be felt where lambda is small differences of large numbers."""
    return level if isinstance(level, Tensor) else torch.tensor(level, dtype=torch.float64)
