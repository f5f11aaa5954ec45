"""One reward of a batch, compared and scaled: group statistics, baselines, standard deviations. Pure functions on [B].

The rules of combined.py hold here: NaN leaves every statistic, a group without spread gives 0, statistics are float64
on the CPU.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from flowrl.core.advantages import baselines
from flowrl.core.advantages.baselines import rank_in_group

BASELINES = (
    "group",
    "batch",
    "none",
    "leave_one_out",
    "length_weighted",
    "log_mean_exp",
    "second_best",
    "pass_at_k",
    "given",
)
GROUPED = tuple(name for name in BASELINES if name not in ("batch", "none", "given"))
SCALES = ("group", "batch", "batch_centered", "whiten", "whiten_by_length", "nonzero", "rms_group", "rms_batch", "none")
SINGLETONS = ("zero", "raw")

# Rewards arrive in float32 (resolution 1.2e-7 relative): a spread below eight of those steps is rounding.
_TIE = 1e-6


class GroupStats(NamedTuple):
    """Statistics of G groups. index int64 [B] maps a sample to its group; the rest is [G], in order of rising label."""

    index: Tensor
    count: Tensor  # scored samples
    mean: Tensor
    std: Tensor
    tied: Tensor  # bool: no spread (also true of groups with one or no scored sample)


def group_stats(values: Tensor, group: Tensor, *, unbiased: bool = False, trim: float = 0.0) -> GroupStats:
    """Count, mean and standard deviation of each group, ignoring NaN.

    values [B], group int64 [B]. `unbiased` divides by n-1. `trim` in [0, 1) leaves the int(trim * n) lowest values of a
    group out of its mean and standard deviation (MixGRPO's trimmed_ratio); count and tied still see them.
    """
    x = float64(values)
    labels, index = torch.unique(group.cpu(), return_inverse=True)
    scored = ~torch.isnan(x)

    def total(part: Tensor) -> Tensor:
        return torch.zeros(len(labels), dtype=torch.float64).index_add_(0, index, part.double())

    count = total(scored)
    kept = scored & (rank_in_group(x, index) >= torch.floor(count * trim)[index])
    num = total(kept)
    mean = total(x.where(kept, 0.0)) / num.clamp(min=1)
    deviation = (x - mean[index]).where(kept, 0.0)
    std = (total(deviation**2) / (num - int(unbiased)).clamp(min=1)).sqrt()
    std = std.masked_fill(_tied(x, index, kept, len(labels)), 0.0)
    return GroupStats(index, count, mean, std, _tied(x, index, scored, len(labels)))


def float64(values: Tensor) -> Tensor:
    """The values, of any shape, in float64 on the CPU, without gradient."""
    return values.detach().to("cpu", torch.float64)


def _tied(x: Tensor, index: Tensor, member: Tensor, num_groups: int) -> Tensor:
    """Whether the members of each group are equal up to float32 rounding. bool [G]."""
    where, chosen = index[member], x[member]
    high = torch.full((num_groups,), -torch.inf, dtype=torch.float64).scatter_reduce(0, where, chosen, "amax")
    low = torch.full((num_groups,), torch.inf, dtype=torch.float64).scatter_reduce(0, where, chosen, "amin")
    return high - low <= _TIE * torch.maximum(high.abs(), low.abs())


def whiten(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) over the valid entries, var with n-1; 0 elsewhere. float64, shape of values.

    With values [B, K] and a mask of valid decisions long rows weigh more, which is REINFORCE++'s choice; with [B] every
    sample weighs the same.
    """
    x = float64(values)
    valid = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.cpu().bool()
    num = valid.sum().clamp(min=1)
    centred = (x - x.where(valid, 0.0).sum() / num).where(valid, 0.0)
    return centred / (centred.square().sum() / (num - 1).clamp(min=1) + 1e-8).sqrt()


def normalise(
    values: Tensor,
    group: Tensor,
    *,
    baseline: str = "group",
    scale: str = "group",
    eps: float = 1e-4,
    floor: float = 0.0,
    unbiased: bool = False,
    trim: float = 0.0,
    singleton: str = "zero",
    lengths: Tensor | None = None,
    tau: float = 1.0,
    k: int = 4,
    given: Tensor | None = None,
) -> Tensor:
    """(value - baseline) / (max(std, floor) + eps) of one reward, float64 [B]; 0 for NaN and for groups without spread.

    baseline: mean of the group, of the batch, of the other members (RLOO), or nothing; length_weighted, log_mean_exp
    (tau), second_best, pass_at_k (k): see baselines.py. The last has its own scale, by which "group" divides. given:
    `given` [B], such as the reward of the prompt's greedy sample (ReMax, arXiv:2310.10505).
    scale: std of the group, of all raw values ("batch": Flow-GRPO global_std), of all centred values
    ("batch_centered"), whitening of the centred values (which ignores eps and floor), also with each sample counted by
    its length ("whiten_by_length"), the share of values that are not 0 ("nonzero": GPG), the root mean square of the
    centred values of the group or the batch ("rms_group", "rms_batch"; with n - 1 where unbiased: AReaL), or nothing.
    lengths [B]: the samples' numbers of decisions; None: all alike.
    singleton: a group with one scored sample has no mean to compare with: "zero" ignores it, "raw" leaves it undivided
    by a group std and without a group baseline (verl).
    """
    x, scored = float64(values), ~torch.isnan(values).cpu()
    own = group_stats(x, group, unbiased=unbiased, trim=trim)
    batch = group_stats(x, torch.zeros_like(group), unbiased=unbiased, trim=trim)
    alone = (own.count == 1)[own.index]
    size = torch.ones_like(x) if lengths is None else float64(lengths)
    if baseline == "given":
        if given is None:
            raise ValueError("baseline 'given' needs the values that are given")
        base = float64(given)
    else:
        base = _baseline(x, baseline, own, batch, size, tau)
    base = base.masked_fill(alone & (baseline in GROUPED), 0.0)
    centred = (x - base).where(scored, 0.0)
    if baseline == "pass_at_k":
        result = baselines.pass_at_k(x, own.index, scored, k, divided=scale == "group")
    elif scale == "whiten":
        result = whiten(centred, scored)
    elif scale == "whiten_by_length":
        result = baselines.whiten_by_length(centred, scored, size)
    elif scale == "nonzero":
        result = centred / baselines.nonzero_share(x, scored)
    else:
        result = _divide(centred, _std(centred, scale, scored, own, batch, alone, unbiased), eps, floor)
    if baseline in GROUPED or scale == "group":
        silent = own.tied[own.index] & ~(alone & (singleton == "raw"))
        result = result.masked_fill(silent, 0.0)
    return result


def _baseline(x: Tensor, baseline: str, own: GroupStats, batch: GroupStats, lengths: Tensor, tau: float) -> Tensor:
    if baseline in ("none", "pass_at_k"):
        return torch.zeros_like(x)
    if baseline == "batch":
        return batch.mean[batch.index]
    scored = ~x.isnan()
    if baseline == "length_weighted":
        return baselines.length_weighted(x, own.index, scored, lengths)
    if baseline == "log_mean_exp":
        return baselines.log_mean_exp(x, own.index, scored, tau)
    if baseline == "second_best":
        return baselines.second_best(x, own.index, scored, rank_in_group(x, own.index))
    mean = own.mean[own.index]
    if baseline == "leave_one_out":
        count = own.count[own.index]
        mean = (count * mean - x) / (count - 1).clamp(min=1)
    return mean


def _std(
    centred: Tensor, scale: str, scored: Tensor, own: GroupStats, batch: GroupStats, alone: Tensor, unbiased: bool
) -> Tensor | None:
    """The standard deviation that divides each sample, [B] float64; None for no division."""
    if scale == "none":
        return None
    if scale == "group":
        return own.std[own.index].masked_fill(alone, 1.0)
    if scale == "batch":
        return batch.std[batch.index]
    if scale.startswith("rms"):
        index = own.index if scale == "rms_group" else batch.index
        total = baselines.group_sum(centred.square(), index)
        return (total / (baselines.group_sum(scored, index) - int(unbiased)).clamp(min=1)).sqrt()
    shown = centred.where(scored, torch.nan)
    return group_stats(shown, torch.zeros_like(own.index), unbiased=unbiased).std[batch.index]


def _divide(centred: Tensor, std: Tensor | None, eps: float, floor: float) -> Tensor:
    if std is None:
        return centred
    divisor = std.clamp(min=floor) + eps
    # No spread and no guard: such samples equal their mean, and the sign of rounding noise is no advantage.
    return (centred / divisor).where(divisor > 0, 0.0)
