"""Advantages of rows that are not samples: edges of trees, single steps off a trunk."""

from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import Credit
from flowrl.core.advantages.combined import advantages, combined_reward


def row_advantages(
    rewards: dict[str, Tensor],
    group: Tensor,
    credit: Credit | None,
    *,
    weights: dict[str, float],
    asked: dict[str, Tensor] | None = None,
    clip: float | None = 5.0,
    **options: Any,
) -> Tensor:
    """Advantage of each row, float32 [R], on the device of `group`; options are those of `advantages.advantages`.

    given: name -> [B], what the baseline "given" takes off; where rows are samples.
    rewards: name -> [B], group int64 [B]: samples lie prompt by prompt, as many for each, and rows do. Without credit
    rows are samples. by_row: in every view a row's reward is the weighted mean of those of its samples that could be
    scored; the rows of a set of peers are compared, prompt by prompt; the views' advantages add up (G2RPO). Otherwise
    samples are compared and rows take the weighted mean of their advantages. The result is limited to +-clip.

    Raises ValueError where samples do not lie so, or as `advantages` does.
    """
    options |= {"weights": weights, "asked": asked}
    if credit is None:
        return advantages(rewards, group, clip=clip, **options)
    prompts = _prompts(group, credit.weights.shape[-1])
    # As everywhere: what one reward could not score leaves the statistics of all of them, and witnesses do not count.
    unscored = combined_reward(rewards, weights, asked).isnan()
    adv = torch.zeros(prompts, credit.weights.shape[2], dtype=torch.float64)
    if credit.by_row:
        shown = {name: _float64(r).masked_fill(unscored, torch.nan) for name, r in rewards.items() if weights[name]}
        options["weights"] = {name: weights[name] for name in shown}
        options["asked"] = {name: of.unflatten(0, (prompts, -1))[:, 0] for name, of in (asked or {}).items()}
        for view in credit.weights.unbind(1):
            adv += _compare_peers(
                {name: _row_values(r, view, prompts) for name, r in shown.items()}, credit.peers, options
            )
    else:
        leaves = _float64(advantages(rewards, group, clip=None, **options)).masked_fill(unscored, torch.nan)
        for view in credit.weights.unbind(1):
            adv += _row_values(leaves, view, prompts).nan_to_num()
    adv = adv if clip is None else adv.clamp(-clip, clip)
    return adv.flatten().to(group.device, torch.float32)


def _prompts(group: Tensor, samples: int) -> int:
    """How many prompts there are, of so many samples each."""
    if len(group) % samples:
        raise ValueError(f"{len(group)} samples do not divide into prompts of {samples}")
    each = group.unflatten(0, (-1, samples))
    if (each != each[:, :1]).any():
        raise ValueError(f"samples must lie prompt by prompt, {samples} of each, where rows are not samples")
    return len(each)


def _float64(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float64)


def _row_values(values: Tensor, weights: Tensor, prompts: int) -> Tensor:
    """Values [B] of samples as those of rows, float64 [P, r], by weights [P or 1, r, l]; NaN where none is scored."""
    each = values.unflatten(0, (prompts, 1, -1))
    w = _float64(weights) * ~each.isnan()
    total = w.sum(-1)
    return torch.where(total > 0, (w * each.nan_to_num()).sum(-1) / total, torch.nan)


def _compare_peers(values: dict[str, Tensor], peers: Tensor, options: dict[str, Any]) -> Tensor:
    """Advantages [P, r], each set of peers on its own, so that a batch's statistics are those of one depth or step."""
    first = next(iter(values.values()))
    compared = torch.zeros_like(first)
    for number in peers.cpu().unique():
        columns = (peers.cpu() == number).nonzero()[:, 0]
        prompt = torch.arange(len(first)).repeat_interleave(len(columns))
        part = {name: value[:, columns].flatten() for name, value in values.items()}
        # A trunk has no siblings: "raw" is about groups of which a single sample was scored.
        own: dict[str, Any] = {"singleton": "zero"} if len(columns) == 1 else {}
        own["asked"] = {name: of.repeat_interleave(len(columns)) for name, of in options["asked"].items()}
        adv = advantages(part, prompt, clip=None, **(options | own))
        compared[:, columns] = _float64(adv).unflatten(0, (len(first), -1))
    return compared
