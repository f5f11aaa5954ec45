"""How much each decision counts in the policy gradient: factors of its advantage, worked out once for a whole update.

A factor w >= 0 of the advantage is a factor of the clipped loss, max(-w A r, -w A clip(r)) = w max(-A r, -A clip(r)),
and leaves a divergence beside it alone, as the published losses do.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

KINDS = ("none", "noise", "inverse_dt", "inverse_entropy")
LEAST_ENTROPY = 1e-6  # nats, of a row; a completion without any choice would count without limit
MOST_VALUES = 2**24  # that torch.quantile takes


def step_weights(kind: str | Sequence[float], mask: Tensor, step_stats: dict[str, Tensor]) -> Tensor | None:
    """Factor of every decision, float32 [R, K], 0 where the mask is; None where all are 1.

    mask bool [R, K] and step_stats [R, K] of all rows of an update.
    noise: proportional to the decision's std, with mean 1 (TempFlow-GRPO, arXiv:2508.04324; its code has constants for
    the mean: 2.25, 1.73, 1.53). The mean is over steps: that of a step over its rows, then over the steps at which any
    row is trained, each counted once, however many rows a tree has there.
    inverse_dt: 1 / |dt| of the decision (GRPO-Guard, arXiv:2510.22319). As published it is not normalised: its
    mean is the number of steps or more.
    inverse_entropy: mean entropy of all rows over that of the decision's row, where a row's is the mean over its
    decisions: rows that were drawn with more confidence count more (EDGE-GRPO, arXiv:2507.21848).
    A list: the factors of the K steps, as they are.

    Raises ValueError for an unknown kind, a missing statistic, or a list that does not have K factors.
    """
    valid = mask.bool()
    if not isinstance(kind, str):
        if len(kind) != valid.shape[1]:
            raise ValueError(f"objective.weight has {len(kind)} factors, but {valid.shape[1]} steps are trained")
        return torch.tensor(kind, dtype=torch.float32, device=valid.device) * valid
    if kind == "none":
        return None
    if kind == "noise":
        return _mean_one(step_stat(step_stats, "std").double(), valid).float()
    if kind == "inverse_dt":
        return step_stat(step_stats, "dt").abs().where(valid, 1.0).reciprocal().where(valid, 0.0).float()
    if kind == "inverse_entropy":
        return inverse_entropy(step_stat(step_stats, "entropy"), valid)
    raise ValueError(f"weight {kind!r}: choose one of {', '.join(KINDS)}, or give a list of factors")


def top_entropy(share: float, mask: Tensor, step_stats: dict[str, Tensor]) -> Tensor:
    """1 for the decisions whose entropy is in the top `share` of all in the mask, 0 for the others; float32 [R, K].

    The limit is the (1 - share) quantile of the entropies, linear between two of them, and what equals it is in: TRL's
    top_entropy_quantile (arXiv:2506.01939, whose share is 0.2). What a loss is divided by does not change. Raises
    ValueError where decisions have no `entropy`.
    """
    valid, entropy = mask.bool(), step_stat(step_stats, "entropy").float()
    values = entropy[valid]
    if not len(values):
        return torch.zeros_like(entropy)
    if len(values) <= MOST_VALUES:
        limit = torch.quantile(values, 1 - share)
    else:  # the value above the quantile, which selects the same
        limit = values.kthvalue(math.ceil((1 - share) * (len(values) - 1)) + 1).values
    return (valid & (entropy >= limit)).float()


def inverse_entropy(entropy: Tensor, valid: Tensor) -> Tensor:
    """Mean of the rows' entropies over each row's own, float32 [R, K], 0 where not valid; a row's is the mean of
    entropy [R, K] over its valid decisions. Rows without any do not count."""
    number = valid.sum(1)
    of_rows = entropy.float().where(valid, 0.0).sum(1) / number.clamp(min=1)
    mean = of_rows.sum() / (number > 0).sum().clamp(min=1)
    return (mean / of_rows.clamp(min=LEAST_ENTROPY))[:, None] * valid


def step_stat(step_stats: dict[str, Tensor], name: str) -> Tensor:
    """A statistic of the decisions, [R, K]. Raises ValueError if they do not have it."""
    if name not in step_stats:
        raise ValueError(f"the objective needs {name!r} of each decision, which this policy's decisions do not have")
    return step_stats[name]


def _mean_one(value: Tensor, valid: Tensor) -> Tensor:
    rows = valid.sum(0)
    of_steps = value.where(valid, 0.0).sum(0) / rows.clamp(min=1)
    mean = of_steps.sum() / (rows > 0).sum().clamp(min=1)
    return (value / mean).where(valid, 0.0)
