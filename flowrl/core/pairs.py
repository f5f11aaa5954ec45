"""Rows that an objective takes together: pairs of samples of which one is better, and whole groups."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.contracts import Rollout, Together
from flowrl.core.selection import compared_rows, moved_rows, row_advantage


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
    reward, group, chosen = reward.detach().cpu(), group.cpu(), []
    for label in dict.fromkeys(group.tolist()):
        mine = (group == label).nonzero()[:, 0]
        mine = mine[~reward[mine].isnan()]
        order = mine[torch.argsort(reward[mine], descending=True, stable=True)]
        count = min(number, len(order) // 2)
        pairs = torch.stack([order[:count], order.flip(0)[:count]], 1)
        margin = reward[pairs[:, 0]] - reward[pairs[:, 1]]
        chosen.append(pairs[(margin >= min_margin) & ((margin > 0) | ties)])
    return torch.cat(chosen) if chosen else torch.empty(0, 2, dtype=torch.int64)


@dataclass(frozen=True)
class Companions:
    """Which rows belong together.

    labels int64 [R]: equal for those; order int64 [r]: the rows that are used, those that belong together beside each
    other, of a pair the better one first.
    """

    labels: Tensor
    order: Tensor

    @property
    def used(self) -> Tensor:
        """Which rows belong to any, bool [R]."""
        return torch.zeros_like(self.labels, dtype=torch.bool).index_fill_(0, self.order, True)

    def rows(self, block: Tensor) -> Tensor:
        """Those of the rows `block` that are used, in their order."""
        return self.order[torch.isin(self.order, block)]


def companions(
    rollout: Rollout, adv: Tensor, together: Together, pairs: int, *, every: bool = False
) -> Companions | None:
    """The rows that belong together by their advantages [R] or [R, K]; None where each is for itself.

    pair: `pairs` of each group, the best with the worst and so on, where their advantages differ. given: in each group
    the first sample that was given with the first that was drawn, and so on. group: all trained rows of groups that
    anything moves, or of every group. Raises ValueError for given where the rollout does not say which were.
    """
    if together not in ("pair", "given", "group"):
        return None
    group, trained = compared_rows(rollout), rollout.mask.any(1)
    if together == "given":
        return _given_and_drawn(rollout, group, trained)
    if together == "pair":
        value = row_advantage(adv, rollout.mask).float().masked_fill(~trained, torch.nan)
        chosen = best_and_worst(value, group, number=pairs)
        labels = torch.full((len(group),), -1)
        labels[chosen] = torch.arange(len(chosen))[:, None]
        return Companions(labels, chosen.flatten())
    moved = trained if every else torch.isin(group, group[moved_rows(adv, rollout.mask)])
    order = torch.argsort(group, stable=True)
    return Companions(group, order[(trained & moved)[order]])


def _given_and_drawn(rollout: Rollout, group: Tensor, trained: Tensor) -> Companions:
    """In each group the first given sample with the first drawn one, and so on."""
    if "given" not in rollout.step_stats:
        raise ValueError("nothing says which samples were given: set train.source to a share of prompts")
    given, chosen = rollout.step_stats["given"][:, 0] > 0, []
    for label in dict.fromkeys(group.tolist()):
        mine = (group == label) & trained
        chosen += list(
            zip((mine & given).nonzero()[:, 0].tolist(), (mine & ~given).nonzero()[:, 0].tolist(), strict=False)
        )
    order = torch.tensor(chosen, dtype=torch.int64).flatten()
    labels = torch.full((len(group),), -1)
    labels[order] = torch.arange(len(chosen)).repeat_interleave(2)
    return Companions(labels, order)
