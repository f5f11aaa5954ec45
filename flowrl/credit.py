"""Advantages of rows that are not samples: edges of trees, single steps off a trunk."""

from typing import Any

import torch
from torch import Tensor

from flowrl.advantages import advantages
from flowrl.contracts import Credit


def row_advantages(
    rewards: dict[str, Tensor], group: Tensor, credit: Credit | None, *, clip: float | None = 5.0, **options: Any
) -> Tensor:
    """Advantage of each row, float32 [R], on the device of `group`; options are those of `advantages.advantages`.

    rewards: name -> [B], group int64 [B]: samples lie prompt by prompt, as many for each, and rows do. Without credit
    rows are samples. by_row: in every view a row's reward is the weighted mean of those of its samples that could be
    scored; the rows of a set of peers are compared, prompt by prompt; the views' advantages add up (G2RPO). Otherwise
    samples are compared and rows take the weighted mean of their advantages. The result is limited to +-clip.
    """
    if credit is None:
        return advantages(rewards, group, clip=clip, **options)
    num_prompts = len(group.unique())
    if credit.by_row:
        adv = sum(
            _compared({name: _carried(r, weights, num_prompts) for name, r in rewards.items()}, credit.peers, options)
            for weights in credit.weights.unbind(1)
        )
    else:
        leaves = advantages(rewards, group, clip=None, **options).cpu().double()
        scored = ~torch.stack([r.cpu() for r in rewards.values()]).isnan().any(0)
        adv = sum(
            _carried(leaves.where(scored, torch.nan), w, num_prompts).nan_to_num() for w in credit.weights.unbind(1)
        )
    assert isinstance(adv, Tensor)
    adv = adv if clip is None else adv.clamp(-clip, clip)
    return adv.flatten().to(group.device, torch.float32)


def _carried(values: Tensor, weights: Tensor, num_prompts: int) -> Tensor:
    """Values [B] of samples as those of rows, float64 [P, r], by weights [P or 1, r, l]; NaN where none is scored."""
    each = values.detach().cpu().double().unflatten(0, (num_prompts, -1))[:, None]
    scored = ~each.isnan()
    w = weights.double() * scored
    total = w.sum(-1)
    return torch.where(total > 0, (w * each.nan_to_num()).sum(-1) / total, torch.nan)


def _compared(values: dict[str, Tensor], peers: Tensor, options: dict[str, Any]) -> Tensor:
    """Advantages [P, r], each set of peers on its own, so that a batch's statistics are those of one depth or step."""
    first = next(iter(values.values()))
    found = torch.zeros_like(first)
    for number in peers.unique():
        columns = (peers == number).nonzero()[:, 0]
        prompt = torch.arange(len(first)).repeat_interleave(len(columns))
        part = {name: value[:, columns].flatten().float() for name, value in values.items()}
        found[:, columns] = advantages(part, prompt, clip=None, **options).double().unflatten(0, (len(first), -1))
    return found
