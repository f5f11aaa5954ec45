"""The clipped policy-gradient loss (Schulman et al. 2017, eq. 7) for tokens and denoising steps alike.

Token policies clip ratios at 1 +- 0.2. A latent log-density is a mean over its elements, so ratios stay within 1e-3 of
1 and published clips go down to 2e-6, about 17 float32 steps at 1. Hence the clip is
compared with expm1(log-ratio) = ratio - 1, never the ratio with 1 + clip; float64 log-probs stay float64.

Metrics convention (all objectives): a dict of detached tensors. [r, k] entries are per decision, 0 where masked; the
loop reduces them with the slice of aggregate.weights(global mask, "decision_mean"), so sums over micro-batches are
exact means over valid decisions. 0-d entries are named *_max and merge by maximum. aggregate.reduce_metrics and
merge_metrics do both.
"""

import math

import torch
from torch import Tensor

from flowrl.core.objectives.divergence import k3

LEVELS = ("token", "seq_mean", "seq_sum", "seq_token")


def clipped_loss(
    logp: Tensor,
    rollout_logp: Tensor,
    adv: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual: float | None = None,
    level: str = "token",
    mask: Tensor | None = None,
    log_ratio_limit: float | None = None,
    log_ratio: Tensor | None = None,
    far: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)) of each decision, and metrics.

    logp, rollout_logp [r, k]; adv [r] or [r, k]; mask bool or 0/1 [r, k] (None: all valid). Gradient flows through
    logp, or log_ratio, alone. The loss is [r, k], float32 (float64 for float64 log-probs), 0 where masked.
    dual: for A < 0 the loss is at most -A * dual (Ye et al. 2020), else one huge ratio rules the update.
    level: what r is the exponential of; d = logp - rollout_logp. token: d. seq_mean: mean of d over the row,
    differentiated through the mean (GSPO). seq_sum: its sum (RLOO). seq_token: value of seq_mean, gradient of the
    decision's own logp (GSPO-token). The last three need the whole row.
    log_ratio [r, k]: takes the place of d in r.
    log_ratio_limit bounds that exponent (verl: 20); beyond it the gradient is 0.
    far bool [r, k]: in place of the clip range, decisions that are too far from rollout_logp: where r moves further
    away as the advantage wishes, their loss is 0. The others are not clipped.

    Metrics [r, k]: ratio; clip_frac (the clip, or far, decides the loss); dual_frac (dual decides); outside_frac (r
    outside the clip range, or far, whichever branch decides); log_ratio = logp - rollout_logp; approx_kl = k3
    estimate of KL(who sampled || policy) from it. 0-d: abs_log_ratio_max, of the exponent that is compared with the
    clip.

    Raises ValueError for an unknown level, a negative clip, clip_low > 1 or dual <= 1.
    """
    _check(clip_low, clip_high, dual, level)
    valid = torch.ones_like(logp, dtype=torch.bool) if mask is None else mask.bool()
    d = difference(logp, rollout_logp.detach(), valid)
    exponent = exponent_of(d if log_ratio is None else log_ratio.to(d.dtype).where(valid, 0.0), valid, level)
    if log_ratio_limit is not None:
        exponent = exponent.clamp(-log_ratio_limit, log_ratio_limit)
    advantage = (adv[:, None] if adv.ndim == 1 else adv).detach().to(d.dtype).expand_as(d).where(valid, 0.0)
    excess = torch.expm1(exponent.detach())
    above, below = (excess > clip_high, excess < -clip_low) if far is None else ((excess > 0) & far, (excess < 0) & far)
    clipped = (above & (advantage > 0)) | (below & (advantage < 0))
    capped = (advantage < 0) & (excess > (math.inf if dual is None else dual - 1))
    # A choice of branches, not max(): the excess decides, to full precision. Where the ratio has no say its exponent is
    # set to 0, or a ratio of inf would reach the backward pass as 0 * inf = NaN.
    free = ~(clipped | capped | (advantage == 0))
    loss = -advantage * exponent.where(free, 0.0).exp()
    bound = torch.where(above, -advantage * (1 + clip_high), -advantage * (1 - clip_low))
    loss = torch.where(clipped, bound if far is None else 0.0, loss)
    loss = torch.where(capped, -advantage * (dual or 1.0), loss)
    metrics = clip_metrics(d.detach(), exponent.detach(), clipped, capped, above | below, valid)
    return loss, metrics


def _check(clip_low: float, clip_high: float, dual: float | None, level: str) -> None:
    if level not in LEVELS:
        raise ValueError(f"ratio level {level!r}: choose one of {', '.join(LEVELS)}")
    if not 0 <= clip_low <= 1 or clip_high < 0:
        raise ValueError(f"clip_low={clip_low}, clip_high={clip_high}: need 0 <= clip_low <= 1 and clip_high >= 0")
    if dual is not None and dual <= 1:
        raise ValueError(f"dual={dual}: must exceed 1, the ratio of an unchanged policy; None turns it off")


def difference(logp: Tensor, rollout_logp: Tensor, valid: Tensor) -> Tensor:
    """logp - rollout_logp [r, k], at least float32. Padding may hold anything."""
    dtype = torch.promote_types(torch.promote_types(logp.dtype, rollout_logp.dtype), torch.float32)
    return (logp.to(dtype) - rollout_logp.to(dtype)).where(valid, 0.0)


def exponent_of(d: Tensor, valid: Tensor, level: str) -> Tensor:
    """The exponent of the ratio, [r, k], of log-ratios that are 0 where not valid."""
    if level == "token":
        return d
    exponent = d.sum(1, keepdim=True)
    if level != "seq_sum":
        exponent = exponent / valid.sum(1, keepdim=True).clamp(min=1)
    exponent = exponent.expand_as(d)
    return exponent.detach() + (d - d.detach()) if level == "seq_token" else exponent


def clip_metrics(
    d: Tensor, exponent: Tensor, clipped: Tensor, capped: Tensor, outside: Tensor, valid: Tensor
) -> dict[str, Tensor]:
    """The metrics of `clipped_loss`, 0 where not valid; all arguments [r, k], the last four bool."""
    per_decision = {
        "ratio": exponent.exp(),
        "clip_frac": clipped,
        "dual_frac": capped,
        "outside_frac": outside,
        "log_ratio": d,
        "approx_kl": k3(d),
    }
    metrics = {name: value.to(d.dtype).where(valid, 0.0) for name, value in per_decision.items()}
    metrics["abs_log_ratio_max"] = exponent.abs().amax() if exponent.numel() else exponent.new_zeros(())
    return metrics
