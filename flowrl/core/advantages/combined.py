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
from typing import Annotated, Literal

import torch
from torch import Tensor

from flowrl.core.advantages import baselines
from flowrl.core.advantages.normalise import BASELINES, GROUPED, SCALES, SINGLETONS, float64, group_stats, normalise

COMBINES = ("sum", "per_reward")


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
    used = {name: float64(value) for name, value in rewards.items() if weights[name] != 0}
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
    given: dict[str, Tensor] | None = None,
    baseline: Literal[
        "group",
        "batch",
        "none",
        "leave_one_out",
        "length_weighted",
        "log_mean_exp",
        "second_best",
        "pass_at_k",
        "given",
    ] = "group",
    scale: Literal[
        "group", "batch", "batch_centered", "whiten", "whiten_by_length", "nonzero", "rms_group", "rms_batch", "none"
    ] = "group",
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
    groups_by: Literal["largest", "smallest"] = "largest",
) -> Tensor:
    """Advantage of each sample, float32 [B], on the device of `group`.

    rewards: name -> [B]; group int64 [B] over the whole update batch, not a rank's share of it. asked: of rewards that
    are not asked about every prompt, for which samples they are, bool [B]; others take no part in their statistics.
    combine: "sum" normalises the weighted sum once; "per_reward" normalises every reward, then takes their weighted
    mean, so that a reward with a wide range cannot drown the others: weights are divided by the sum of their absolute
    values, as in MixGRPO, and say what rewards count beside each other, never how large a step is. given: name -> [B],
    what baseline "given" takes from each reward. standardise: mean 0
    and std 1 over the batch afterwards (GDPO). The other arguments are those of `normalise`; the result times factor is
    limited to +-clip (None: unlimited). groups: all but this share of the groups, those whose sums of rewards have the
    largest std, get 0 (StarPO-S, arXiv:2504.20073: 0.25); train.drop_silent leaves them out of the loss. groups_by:
    smallest takes those of the smallest std, the control of that paper.

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
    bases = None
    if given is not None:
        asked_base = _used(given, weights, asked)
        bases = asked_base | {"": torch.stack([weights[name] * base for name, base in asked_base.items()]).sum(0)}
    for name, (weight, value) in parts.items():
        # A sample that one reward could not score leaves the statistics of all of them.
        shown = value.where(scored & asked[name] if asked and name in asked else scored, torch.nan)
        base = None if bases is None else bases[name]
        adv += weight * guarded(
            shown, group, baseline=baseline, scale=scale, trim=trim, singleton=singleton, given=base
        )
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
        spread = stats.std if groups_by == "largest" else -stats.std
        adv = adv.where(baselines.top_groups(spread, groups)[stats.index], 0.0)
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
