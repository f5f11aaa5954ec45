"""Advantages of right conversations, shifted by how early they call a tool first."""

import torch
from torch import Tensor

from flowrl.contracts import Rollout


def first_calls(rollout: Rollout) -> Tensor:
    """How many of its tokens a row's model had drawn when it had said its first call, float64 [R]; NaN without any.

    Raises ValueError for samples that are no conversations.
    """
    talks, mask = rollout.samples.talks, rollout.mask.cpu()
    if talks is None or "turn" not in rollout.step_stats:
        raise ValueError("advantage.early reads conversations: give the recipe an environment")
    at = torch.full((len(mask),), torch.nan, dtype=torch.float64)
    for i, talk in enumerate(talks):
        calling = (n for n, (said, shown) in enumerate(talk.exchanges, 1) if said.calls or any(m.name for m in shown))
        if (turn := next(calling, None)) is not None:
            at[i] = (mask[i] & (rollout.step_stats["turn"][i] <= turn)).sum()
    return at


def shifted(adv: Tensor, total: Tensor, rollout: Rollout, *, delta: float, limit: float, right: float) -> Tensor:
    """A_i + clip(delta (p_i - mean p) / mean L, -limit |A_i|, limit |A_i|) of right rows that call: [R] like adv.

    p: see `first_calls`; L: tokens that the model drew. Means are over the rows of a prompt whose total [R], the
    weighted sum of rewards, is above `right` and which call. delta < 0 favours early calls. Advantage shaping of
    arXiv:2508.19201 (ASPO), which shifts the advantage because a reward would lose its scale in the group's.
    """
    at, group = first_calls(rollout), rollout.samples.group.cpu()
    length = rollout.mask.cpu().sum(1).double()
    value, made = adv.double().cpu(), adv.clone()
    for label in group.unique():
        rows = ((group == label) & (total.cpu() > right) & ~at.isnan()).nonzero()[:, 0]
        if len(rows):
            shift = delta * (at[rows] - at[rows].mean()) / length[rows].mean()
            most = limit * value[rows].abs()
            made[rows] = (value[rows] + torch.minimum(torch.maximum(shift, -most), most)).to(made)
    return made
