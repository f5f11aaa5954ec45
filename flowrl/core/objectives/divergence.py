"""Divergence of the policy from another distribution, one term a decision, and the schedules of its coefficient.

Estimators of KL(policy || ref) from decisions drawn by the policy, with x = ref_logp - logp
(Schulman, "Approximating KL divergence", 2020):

    k1 = -x    unbiased, any sign          k2 = x^2 / 2    biased, its gradient is that of the KL
    k3 = exp(x) - x - 1    unbiased, >= 0  abs = |x|

The exact Gaussian divergence of a denoising step needs means, not log-probabilities: the sampler hands it in as kl. Its
variance is that of the step, g^2 |dt|. Flow-GRPO's trainers of SD3 and FLUX and verl-omni's divide by g^2 alone, which
is exact_dt, the exact one times |dt| (0.04 to 0.27 on SD3's steps): a published coefficient belongs to one of the two.
"""

import torch
from torch import Tensor

KINDS = ("k1", "k2", "k3", "abs", "exact", "exact_dt", "forward", "jsd")
GIVEN = ("exact", "exact_dt", "forward", "jsd")  # what the policy hands in


def penalty(
    kind: str,
    logp: Tensor | None = None,
    ref_logp: Tensor | None = None,
    *,
    kl: Tensor | None = None,
    dt: Tensor | None = None,
    rollout_logp: Tensor | None = None,
    mask: Tensor | None = None,
    log_ratio_limit: float | None = None,
    value_limit: float | None = None,
    straight_through: bool = False,
) -> Tensor:
    """Divergence of each decision with gradient in logp (or kl): [r, k], float32 or float64 as given, 0 where masked.

    k1, k2, k3, abs read logp and ref_logp [r, k]; exact, forward and jsd (see `contracts.View`) are kl [r, k] as it is
    given, exact_dt reads also the steps' lengths dt [r, k].
    rollout_logp: log-prob at rollout; the term is multiplied by exp(logp - rollout_logp), gradient included, which
    corrects
    for decisions drawn by an older policy (DeepSeek-V3.2).
    log_ratio_limit bounds x in k3 and value_limit the k3 term (verl: 20 and 10); beyond a limit the gradient is 0.
    straight_through: the value of the kind with the gradient of k2.

    Raises ValueError for an unknown kind or a missing input.
    """
    if kind not in KINDS:
        raise ValueError(f"divergence {kind!r}: choose one of {', '.join(KINDS)}")
    if kind in GIVEN:
        if kl is None or straight_through:
            raise ValueError(f"divergence {kind!r} needs kl, which the sampler computes, and takes no straight_through")
        term = at_least_float32(kl)
        if kind == "exact_dt":
            if dt is None:
                raise ValueError("divergence 'exact_dt' needs dt, which only denoising steps have")
            term = term * dt.abs()
    else:
        if logp is None or ref_logp is None:
            raise ValueError(f"divergence {kind!r} needs logp and ref_logp")
        x = _difference(ref_logp.detach(), logp, mask)
        term = _estimate(kind, x, log_ratio_limit, value_limit)
        if straight_through:
            surrogate = x.square() / 2
            term = term.detach() + surrogate - surrogate.detach()
    if rollout_logp is not None:
        if logp is None:
            raise ValueError("rollout_logp is given without logp: the correction is exp(logp - rollout_logp)")
        term = term * _difference(logp, rollout_logp.detach(), mask).exp()
    return term if mask is None else term.where(mask.bool(), 0.0)


def _estimate(kind: str, x: Tensor, log_ratio_limit: float | None, value_limit: float | None) -> Tensor:
    if kind == "k1":
        return -x
    if kind == "abs":
        return x.abs()
    if kind == "k2":
        return x.square() / 2
    if log_ratio_limit is not None:
        x = x.clamp(-log_ratio_limit, log_ratio_limit)
    term = k3(x)
    return term if value_limit is None else term.clamp(-value_limit, value_limit)


def k3(x: Tensor) -> Tensor:
    """exp(x) - x - 1 for x of any shape, accurate and never negative near 0, in value and gradient.

    Denoising steps differ by 1e-4 or less from the reference: there the three terms cancel to rounding noise of either
    sign in float32. Below 0.01 the Taylor series to x^5 is right to 1e-10 relative.
    """
    # The clamp keeps the unused branch finite: 0 * inf in the backward pass of `where` would be NaN.
    near = x.clamp(-0.01, 0.01)
    series = near.square() * (1 / 2 + near * (1 / 6 + near * (1 / 24 + near / 120)))
    return torch.where(x.abs() < 0.01, series, torch.expm1(x) - x)


def _difference(left: Tensor, right: Tensor, mask: Tensor | None) -> Tensor:
    """left - right, with masked positions set to 0 before any exponential can turn padding into NaN."""
    difference = at_least_float32(left) - at_least_float32(right)
    return difference if mask is None else difference.where(mask.bool(), 0.0)


def at_least_float32(value: Tensor) -> Tensor:
    """The values, of any shape, as float32 or as wide as they are."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def adaptive_coefficient(coef: float, kl: float, *, target: float, horizon: float, num_samples: int) -> float:
    """The next coefficient of a controller that holds the divergence near target (Ziegler et al. 2019, section 2.2).

    kl is the mean over rows of row means in the last update, which used num_samples samples; one update moves the
    coefficient by at most 20 % * num_samples / horizon.
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coef * (1.0 + error * num_samples / horizon)


def linear_coefficient(update: int, *, start: float, end: float, total: int) -> float:
    """Coefficient after `update` updates: linear from start to end over total updates, then end."""
    return start + (end - start) * min(update / total, 1.0)
