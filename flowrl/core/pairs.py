"""Pairs of samples of which one is better: what preference losses are trained on."""

import torch
from torch import Tensor


def best_and_worst(
    reward: Tensor, group: Tensor, *, number: int = 1, min_margin: float = 0.0, ties: bool = False
) -> Tensor:
    """Pairs (better, worse) of each group as positions int64 [p, 2]: the best with the worst, the second best with the
    second worst, and so on, `number` of them or as many as the group has.

    reward [R]; NaN is no part of any pair; group int64 [R]. A pair whose rewards lie less than min_margin apart is left
    out, as is one of equal rewards unless `ties`. Of equal rewards the earlier counts as better. Groups come in the
    order of their first row. Flow-GRPO and verl-omni take one pair a group.
    Raises ValueError for a number below 1.
    """
    if number < 1:
        raise ValueError(f"number={number}: a group gives 1 pair or more")
    reward, group, found = reward.detach().cpu(), group.cpu(), []
    for label in dict.fromkeys(group.tolist()):
        mine = (group == label).nonzero()[:, 0]
        mine = mine[~reward[mine].isnan()]
        order = mine[torch.argsort(reward[mine], descending=True, stable=True)]
        count = min(number, len(order) // 2)
        pairs = torch.stack([order[:count], order.flip(0)[:count]], 1)
        margin = reward[pairs[:, 0]] - reward[pairs[:, 1]]
        found.append(pairs[(margin >= min_margin) & ((margin > 0) | ties)])
    return torch.cat(found) if found else torch.empty(0, 2, dtype=torch.int64)
