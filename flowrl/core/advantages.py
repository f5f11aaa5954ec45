"""From rewards to advantages: baseline, scale, combination of several rewards, credit. Pure functions on [B] tensors.

B samples carry labels `group` int64 [B]; labels need not be contiguous and groups need not be equal in size.
Three rules hold everywhere:

- NaN means "could not be scored". Such a sample leaves every statistic and its advantage is 0.
- A group without spread teaches nothing: its advantages are exactly 0 under a group baseline or a group scale, also
  where rewards differ by float error alone (rounding noise divided by a standard deviation of its own size is +-1).
- Statistics are float64 on the CPU, whatever holds the rewards: a few thousand numbers, summed in a fixed order.

Published variants are arguments, not functions. Their standard deviations: Flow-GRPO population + 1e-4 · DanceGRPO and
MixGRPO unbiased + 1e-8 · verl-omni and TRL unbiased + 1e-4 · Flow-Factory max(population, 1e-6).
"""

from collections.abc import Iterable
from functools import partial
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from flowrl.core import baselines
from flowrl.core.baselines import rank_in_group

BASELINES = ("group", "batch", "none", "leave_one_out", "length_weighted", "log_mean_exp", "second_best", "pass_at_k")
GROUPED = tuple(name for name in BASELINES if name not in ("batch", "none"))
SCALES = ("group", "batch", "batch_centered", "whiten", "whiten_by_length", "nonzero", "none")
COMBINES = ("sum", "per_reward")
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
    x = _float64(values)
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


def _float64(values: Tensor) -> Tensor:
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
    x = _float64(values)
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
) -> Tensor:
    """(value - baseline) / (max(std, floor) + eps) of one reward, float64 [B]; 0 for NaN and for groups without spread.

    baseline: mean of the group, of the batch, of the other members (RLOO), or nothing; length_weighted, log_mean_exp
    (tau), second_best, pass_at_k (k): see baselines.py. The last has its own scale, by which "group" divides.
    scale: std of the group, of all raw values ("batch": Flow-GRPO global_std), of all centred values
    ("batch_centered"), whitening of the centred values (which ignores eps and floor), also with each sample counted by
    its length ("whiten_by_length"), the share of values that are not 0 ("nonzero": GPG), or nothing.
    lengths [B]: the samples' numbers of decisions; None: all alike.
    singleton: a group with one scored sample has no mean to compare with: "zero" ignores it, "raw" leaves it undivided
    by a group std and without a group baseline (verl).
    """
    x, scored = _float64(values), ~torch.isnan(values).cpu()
    own = group_stats(x, group, unbiased=unbiased, trim=trim)
    batch = group_stats(x, torch.zeros_like(group), unbiased=unbiased, trim=trim)
    alone = (own.count == 1)[own.index]
    size = torch.ones_like(x) if lengths is None else _float64(lengths)
    base = _baseline(x, baseline, own, batch, size, tau).masked_fill(alone & (baseline in GROUPED), 0.0)
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
    shown = centred.where(scored, torch.nan)
    return group_stats(shown, torch.zeros_like(own.index), unbiased=unbiased).std[batch.index]


def _divide(centred: Tensor, std: Tensor | None, eps: float, floor: float) -> Tensor:
    if std is None:
        return centred
    divisor = std.clamp(min=floor) + eps
    # No spread and no guard: such samples equal their mean, and the sign of rounding noise is no advantage.
    return (centred / divisor).where(divisor > 0, 0.0)


def combined_reward(
    rewards: dict[str, Tensor], weights: dict[str, float], asked: dict[str, Tensor] | None = None
) -> Tensor:
    """Weighted sum of the rewards, float64 [B]; NaN where a reward with non-zero weight is NaN.

    A weight of 0 marks a witness: it is reported and never trained on, so its NaN costs no sample. asked: of rewards
    that are not asked about every prompt, for which samples they are, bool [B]; elsewhere they add nothing.
    Raises ValueError when names and weights differ, no weight is non-zero, or a reward is infinite.
    """
    used = _used(rewards, weights, asked)
    return torch.stack([weights[name] * value for name, value in used.items()]).sum(0)


def _used(rewards: dict[str, Tensor], weights: dict[str, float], asked: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The rewards of non-zero weight as float64 on the CPU, each checked; 0 where one is not asked."""
    if set(rewards) != set(weights):
        raise ValueError(f"rewards {sorted(rewards)} and weights {sorted(weights)} must name the same rewards")
    used = {name: _float64(value) for name, value in rewards.items() if weights[name] != 0}
    if not used:
        raise ValueError(f"weights {weights}: at least one must be non-zero, or there is nothing to train on")
    for name, value in used.items():
        if torch.isinf(value).any():
            raise ValueError(f"reward {name!r} is infinite for a sample; NaN is the mark for 'could not be scored'")
    return {name: value.where(asked[name], 0.0) if asked and name in asked else value for name, value in used.items()}


def advantages(
    rewards: dict[str, Tensor],
    group: Tensor,
    *,
    weights: dict[str, float],
    asked: dict[str, Tensor] | None = None,
    lengths: Tensor | None = None,
    baseline: Literal[
        "group", "batch", "none", "leave_one_out", "length_weighted", "log_mean_exp", "second_best", "pass_at_k"
    ] = "group",
    scale: Literal["group", "batch", "batch_centered", "whiten", "whiten_by_length", "nonzero", "none"] = "group",
    combine: Literal["sum", "per_reward"] = "per_reward",
    standardise: bool = False,
    eps: Annotated[float, ">= 0"] = 1e-4,
    floor: Annotated[float, ">= 0"] = 0.0,
    unbiased: bool = False,
    trim: Annotated[float, "in [0, 1)"] = 0.0,
    singleton: Literal["zero", "raw"] = "zero",
    clip: Annotated[float, "> 0"] | None = 5.0,
    tau: Annotated[float, "> 0"] = 1.0,
    k: Annotated[int, ">= 1"] = 4,
    factor: Annotated[float, "> 0"] = 1.0,
    groups: Annotated[float, "> 0 and <= 1"] = 1.0,
) -> Tensor:
    """Advantage of each sample, float32 [B], on the device of `group`.

    rewards: name -> [B]; group int64 [B] over the whole update batch, not a rank's share of it. asked: of rewards that
    are not asked about every prompt, for which samples they are, bool [B]; others take no part in their statistics.
    combine: "sum" normalises the weighted sum once; "per_reward" normalises every reward, then takes their weighted
    mean, so that a reward with a wide range cannot drown the others: weights are divided by the sum of their absolute
    values, as in MixGRPO, and say what rewards count beside each other, never how large a step is. standardise: mean 0
    and std 1 over the batch afterwards (GDPO). The other arguments are those of `normalise`; the result times factor is
    limited to +-clip (None: unlimited). groups: all but this share of the groups, those whose sums of rewards have the
    largest std, get 0 (StarPO-S, arXiv:2504.20073: 0.25); train.drop_silent leaves them out of the loss.

    Raises ValueError for an unknown option, or as combined_reward does.
    """
    _check_options(baseline, scale, combine, singleton, trim)
    used = _used(rewards, weights, asked)
    total = combined_reward(rewards, weights, asked)
    scored = ~torch.isnan(total)
    size = sum(abs(weights[name]) for name in used)
    parts = {"": (1.0, total)} if combine == "sum" else {name: (weights[name] / size, used[name]) for name in used}
    guarded = partial(normalise, eps=eps, floor=floor, unbiased=unbiased, lengths=lengths, tau=tau, k=k)
    adv = torch.zeros_like(total)
    for name, (weight, value) in parts.items():
        # A sample that one reward could not score leaves the statistics of all of them.
        shown = value.where(scored & asked[name] if asked and name in asked else scored, torch.nan)
        adv += weight * guarded(shown, group, baseline=baseline, scale=scale, trim=trim, singleton=singleton)
    if standardise:
        adv = guarded(adv.where(scored, torch.nan), torch.zeros_like(group), baseline="batch", scale="batch")
    if baseline in GROUPED:
        # Rewards that cancel in the sum leave rounding far above the size of the sum, and a standardisation moves exact
        # zeros by the rounding of its mean: hence this look at what went in, beside the one inside normalise.
        silent = _all_tied(used.values(), scored, group, singleton)
        if combine == "sum":
            silent |= _all_tied([total], scored, group, singleton)
        adv = adv.masked_fill(silent, 0.0)
    if groups < 1:
        stats = group_stats(total, group)
        adv = adv.where(baselines.top_groups(stats.std, groups)[stats.index], 0.0)
    adv = adv if factor == 1 else adv * factor
    if clip is not None:
        adv = adv.clamp(-clip, clip)
    return adv.to(group.device, torch.float32)


# name of an advantage -> the function, whose arguments are keys of a recipe
ADVANTAGES = {"normalised": advantages}


def _all_tied(values: Iterable[Tensor], scored: Tensor, group: Tensor, singleton: str) -> Tensor:
    """Samples of groups in which each of the values is tied, bool [B]."""
    tied = torch.ones_like(scored)
    for value in values:
        stats = group_stats(value.where(scored, torch.nan), group)
        keep = (stats.count == 1) & (singleton == "raw")
        tied &= (stats.tied & ~keep)[stats.index]
    return tied


def _check_options(baseline: str, scale: str, combine: str, singleton: str, trim: float) -> None:
    given = {"baseline": baseline, "scale": scale, "combine": combine, "singleton": singleton}
    lists = {"baseline": BASELINES, "scale": SCALES, "combine": COMBINES, "singleton": SINGLETONS}
    for name, value in given.items():
        if value not in lists[name]:
            raise ValueError(f"{name}={value!r}: choose one of {', '.join(lists[name])}")
    if not 0 <= trim < 1:
        raise ValueError(f"trim={trim}: must lie in [0, 1)")
    if trim and baseline in GROUPED[1:]:
        raise ValueError(f"trim and baseline={baseline!r} both decide who is in the mean; set trim to 0")
    if baseline == "pass_at_k" and scale not in ("group", "none"):
        raise ValueError(f"scale={scale!r}: baseline 'pass_at_k' has a scale of its own; set scale to group or none")


def advantage_metrics(
    rewards: dict[str, Tensor],
    group: Tensor,
    adv: Tensor,
    *,
    weights: dict[str, float],
    asked: dict[str, Tensor] | None = None,
    total: Tensor | None = None,
) -> dict[str, float]:
    """What a run should show of its rewards, witnesses included.

    Per name and for the weighted sum ("total"): mean and population std of the scored samples and the share of NaN
    among those that it was asked about. total [B] is the weighted sum where it is another than that of these rewards.
    Beside them: share of groups whose weighted sum has no spread (they train nothing) and mean absolute advantage of
    all samples.
    """
    total = combined_reward(rewards, weights, asked) if total is None else total
    metrics: dict[str, float] = {}
    for name, value in {**rewards, "total": total}.items():
        value = value[asked[name]] if asked and name in asked else value
        known = value.double()[~value.isnan()].cpu()
        metrics[f"reward/{name}/mean"] = float(known.mean())  # NaN where nothing is known
        metrics[f"reward/{name}/std"] = float(known.std(correction=0)) if len(known) else float("nan")
        metrics[f"reward/{name}/nan"] = 1.0 - len(known) / len(value) if len(value) else 0.0
    metrics["groups/zero_variance"] = float(group_stats(total, group).tied.double().mean())
    metrics["adv/abs_mean"] = float(adv.abs().mean())
    return metrics
