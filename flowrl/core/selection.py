"""Which rows of a rollout are trained, once their advantages are known.

Advantages are those of all rows, [R], or of all decisions, [R, K]; a row that is left out is masked, and so leaves the
loss and what it is divided by. Rows whose decisions have advantages of their own are compared by the sum over those
that are trained.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowrl.contracts import Rollout


def moved_rows(adv: Tensor, mask: Tensor) -> Tensor:
    """Rows with a trained decision whose advantage is not 0, bool [R]. adv [R] or [R, K], mask bool [R, K]."""
    adv = adv.cpu()
    return (mask & ((adv if adv.ndim == 2 else adv[:, None]) != 0)).any(1)


def rank_shares(adv: Tensor, rows: Tensor) -> Tensor:
    """Advantages [R] with those of the rows int64 [r] replaced by their place among these, (number below + 1/2) / r.

    Of equal ones the earlier rows count as lower.
    """
    shares = adv.clone()
    shares[rows[torch.argsort(adv[rows], stable=True)]] = (torch.arange(len(rows)).to(adv) + 0.5) / max(len(rows), 1)
    return shares


def row_advantage(adv: Tensor, mask: Tensor) -> Tensor:
    """What rows are compared by, [R]: the advantage, or the sum [R] over the mask [R, K] of those of decisions."""
    return adv if adv.ndim == 1 else adv.cpu().where(mask, 0.0).sum(1)


def without_rows(rollout: Rollout, adv: Tensor, out: Tensor) -> tuple[Rollout, Tensor]:
    """The rollout with the rows `out`, bool [R], masked, and their advantages 0, so that nothing replays them."""
    out = out.cpu()[:, None]
    blank = out.to(adv.device) if adv.ndim == 2 else out[:, 0].to(adv.device)
    return replace(rollout, mask=rollout.mask & ~out), adv.masked_fill(blank, 0.0)


def extremes(values: Tensor, compared: Tensor, keep: int) -> Tensor:
    """Which rows are among the keep / 2 highest or the keep / 2 lowest of those they are compared with: bool [R].

    values [R], finite; compared int64 [R]: rows with equal labels are compared. Sets of `keep` rows or fewer stay
    whole. Of equal values the earlier rows count as lower. Raises ValueError for a keep that is odd or below 2.
    Best-of-n of DanceGRPO (arXiv:2505.07818); on the leaves of a tree, the width pruning of BranchGRPO
    (arXiv:2509.06040) that keeps both ends.
    """
    if keep < 2 or keep % 2:
        raise ValueError(f"keep={keep}: give an even number, 2 or more")
    order, rank, size = _ranked(values.detach().cpu(), compared.cpu())
    kept = torch.empty_like(order, dtype=torch.bool)
    kept[order] = (rank < keep // 2) | (rank >= size - keep // 2)
    return kept


def _ranked(values: Tensor, compared: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(order, rank, size), int64 [R] each: rows set by set, rising within each, their ranks, and the sets' sizes."""
    by_value = torch.argsort(values, stable=True)
    order = by_value[torch.argsort(compared[by_value], stable=True)]
    _, count = torch.unique_consecutive(compared[order], return_counts=True)
    rank = torch.arange(len(order)) - (count.cumsum(0) - count).repeat_interleave(count)
    return order, rank, count.repeat_interleave(count)


def compared_rows(rollout: Rollout) -> Tensor:
    """int64 [R]: equal for rows that are compared with each other, the samples of a prompt or its peers in a tree."""
    group, credit = rollout.samples.group.cpu(), rollout.credit
    if credit is None:
        return group
    prompts = len(group.unique())
    return (torch.arange(prompts)[:, None] * (int(credit.peers.max()) + 1) + credit.peers).flatten()


def largest(values: Tensor, compared: Tensor, keep: int) -> Tensor:
    """Which rows are among the `keep` farthest from 0 of those they are compared with: bool [R].

    values [R], finite; compared int64 [R]. Of equal ones the later rows are kept. Raises ValueError for a keep below 1.
    Completion pruning of CPPO (arXiv:2503.22342, eq. 9).
    """
    if keep < 1:
        raise ValueError(f"keep={keep}: give a whole number, 1 or more")
    order, rank, size = _ranked(values.detach().cpu().abs(), compared.cpu())
    kept = torch.empty_like(order, dtype=torch.bool)
    kept[order] = rank >= size - keep
    return kept


def smallest(values: Tensor, compared: Tensor, keep: int) -> Tensor:
    """Which rows are among the `keep` nearest to 0 of those they are compared with: bool [R].

    The opposite of `largest`, the control of CPPO's ablation (arXiv:2503.22342). Of equal ones the earlier are kept.
    """
    if keep < 1:
        raise ValueError(f"keep={keep}: give a whole number, 1 or more")
    order, rank, _ = _ranked(values.detach().cpu().abs(), compared.cpu())
    kept = torch.empty_like(order, dtype=torch.bool)
    kept[order] = rank < keep
    return kept


def most_spread(values: Tensor, compared: Tensor, keep: int) -> Tensor:
    """The `keep` rows of the largest variance among those they are compared with: bool [R].

    These are some of the lowest and the rest from the highest; of equal variances the set with more of the highest is
    taken. Sets of `keep` rows or fewer stay whole. Max-variance down-sampling of PODS (arXiv:2504.13818, theorem 1).
    """
    if keep < 1:
        raise ValueError(f"keep={keep}: give a whole number, 1 or more")
    order, rank, size = _ranked(values.detach().cpu(), compared.cpu())
    kept = torch.ones_like(order, dtype=torch.bool)
    for first in (rank == 0).nonzero()[:, 0].tolist():
        number = int(size[first])
        if number > keep:
            rows = order[first : first + number]
            x, cut = values.detach().cpu()[rows].double(), number - keep
            spread = torch.stack([torch.cat([x[:low], x[low + cut :]]).var(correction=0) for low in range(keep + 1)])
            low = int(spread.argmax())
            kept[rows[low : low + cut]] = False
    return kept


SELECTIONS = {"extremes": extremes, "magnitude": largest, "smallest": smallest, "variance": most_spread}


def selected_rows(rollout: Rollout, adv: Tensor, keep: int, by: str = "extremes") -> tuple[Rollout, Tensor]:
    """The rollout with all but `keep` of the rows that are compared masked, and their advantages [R] or [R, K] 0."""
    kept = SELECTIONS[by](row_advantage(adv, rollout.mask), compared_rows(rollout), keep)
    return without_rows(rollout, adv, ~kept)


def without_silent(rollout: Rollout, adv: Tensor) -> Rollout:
    """The rollout with the rows masked whose advantages, [R] or [R, K], are 0.

    They count in no mean and pay no divergence.

    As Flow-GRPO's SD3 script (arXiv:2505.05470) leaves such samples out before it cuts its batches.
    """
    return replace(rollout, mask=rollout.mask & moved_rows(adv, rollout.mask)[:, None])


@dataclass(frozen=True)
class WidthPruning:
    """BranchGRPO's width pruning (arXiv:2509.06040, its code): what is left of the decisions behind the last split.

    candidates bool [r, K]: these decisions of a prompt's r rows. mode branches: of each row the best
    max(1, int(n * ratio)); they share its advantage, so that its earliest are kept. ends: of all n of a prompt,
    max(2, int(n * ratio)), one half of the highest and the rest of the lowest advantages. Of equal ones the earlier
    count as higher.
    """

    candidates: Tensor
    mode: str
    ratio: float

    def kept_decisions(self, adv: Tensor) -> Tensor:
        """Which decisions stay, bool [R, K], from advantages [R] or [R, K]."""
        rows = len(self.candidates)
        kept = torch.ones(len(adv) // rows, *self.candidates.shape, dtype=torch.bool)
        for prompt, values in zip(kept, adv.detach().cpu().unflatten(0, (-1, rows)), strict=True):
            edges = self.candidates.nonzero()
            parts = [edges[edges[:, 0] == row] for row in range(rows)] if self.mode == "branches" else [edges]
            for part in parts:
                adv_there = values[part[:, 0]] if values.ndim == 1 else values[part[:, 0], part[:, 1]]
                out = part[self._left_out(adv_there)]
                prompt[out[:, 0], out[:, 1]] = False
        return kept.flatten(0, 1)

    def _left_out(self, values: Tensor) -> Tensor:
        order = torch.argsort(values, descending=True, stable=True)
        if self.mode == "branches":
            return order[max(1, int(len(order) * self.ratio)) :]
        number = max(2, int(len(order) * self.ratio))
        return order[number // 2 : max(len(order) - (number - number // 2), number // 2)]


def prune_width(rollout: Rollout, adv: Tensor, pruning: WidthPruning) -> Rollout:
    """The rollout with the decisions masked that a width pruning leaves out; adv [R] or [R, K]."""
    return replace(rollout, mask=rollout.mask & pruning.kept_decisions(adv))
