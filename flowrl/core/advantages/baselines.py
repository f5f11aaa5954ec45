"""Baselines and scales of published methods beyond means and standard deviations. Pure functions on float64 [B].

x holds the rewards of B samples, NaN where one could not be scored; index int64 [B] says whose group (0 to G - 1) each
belongs to; scored bool [B].
"""

from math import comb

import torch
from torch import Tensor

PASS_EPS = 1e-6  # of the published standard deviation


def rank_in_group(x: Tensor, index: Tensor) -> Tensor:
    """Position of each value inside its group, lowest first, NaN last. int64 [B]."""
    order = torch.argsort(x, stable=True)
    order = order[torch.argsort(index[order], stable=True)]
    sizes = torch.bincount(index)
    start = sizes.cumsum(0) - sizes
    rank = torch.empty_like(index)
    rank[order] = torch.arange(len(x)) - start[index[order]]
    return rank


def group_sum(values: Tensor, index: Tensor) -> Tensor:
    """Of each sample, the sum of the values [B] over its group: [B]."""
    return torch.zeros(len(values), dtype=torch.float64).index_add_(0, index, values.double())[index]


def length_weighted(x: Tensor, index: Tensor, scored: Tensor, lengths: Tensor) -> Tensor:
    """The mean of the group in which each sample counts by its length [B]: OPO (arXiv:2505.23585, section 3)."""
    size = lengths.where(scored, 0.0)
    return group_sum(x.where(scored, 0.0) * size, index) / group_sum(size, index).clamp(min=1e-12)


def log_mean_exp(x: Tensor, index: Tensor, scored: Tensor, tau: float) -> Tensor:
    """tau log(mean of exp(x / tau)) of the group: OPMD (arXiv:2505.17826). The group's mean where tau is large."""
    low = torch.full((len(x),), -torch.inf, dtype=torch.float64)
    highest = low.scatter_reduce(0, index[scored], x[scored], "amax")[index]
    highest = highest.where(highest.isfinite(), 0.0)
    shares = ((x - highest) / tau).exp().where(scored, 0.0)
    mean = group_sum(shares, index) / group_sum(scored, index).clamp(min=1)
    return highest + tau * mean.where(mean > 0, 1.0).log()


def second_best(x: Tensor, index: Tensor, scored: Tensor, rank: Tensor) -> Tensor:
    """Of the best of a group, the second best value; of all others their own, so that they are left alone.

    rank int64 [B] of each within its group, lowest first, unscored last. Source: pass@k policy optimisation
    (arXiv:2503.19595), as in verl.
    """
    count = group_sum(scored, index).long()
    second = group_sum(x.where(scored & (rank == count - 2), 0.0), index)
    return torch.where(scored & (count > 1) & (rank == count - 1), second, x)


def pass_at_k(x: Tensor, index: Tensor, scored: Tensor, k: int, *, divided: bool) -> Tensor:
    """What each sample adds to the chance that one of k is right, over that chance's own mean and deviation: [B].

    A sample is right where x is above 0.5. Of n scored samples in a group, c of them right, a draw of k without
    replacement holds a right one with probability rho = 1 - C(n - c, k) / C(n, k). A right sample has 1 - rho, a wrong
    one 1 - rho - C(n - c - 1, k - 1) / C(n - 1, k - 1); divided by sqrt(rho (1 - rho)) + 1e-6 where `divided`. Groups
    of fewer than k scored samples get 0. Source: Pass@k training (arXiv:2508.10751, section 2.3).
    """
    right = scored & (x > 0.5)
    result = torch.zeros_like(x)
    for group in index.unique():
        member = scored & (index == group)
        n, c = int(member.sum()), int((member & right).sum())
        if n < k:
            continue
        rho = 1 - comb(n - c, k) / comb(n, k)
        wrong = comb(n - c - 1, k - 1) / comb(n - 1, k - 1) if c < n else 0.0
        size = (rho * (1 - rho)) ** 0.5 + PASS_EPS if divided else 1.0
        result[member & right] = (1 - rho) / size
        result[member & ~right] = (1 - rho - wrong) / size
    return result


def whiten_by_length(centred: Tensor, scored: Tensor, lengths: Tensor) -> Tensor:
    """Whitened as if each sample stood at every one of its decisions: REINFORCE++-baseline (arXiv:2501.03262).

    (x - mean) / sqrt(var + 1e-8), var with n - 1, over sum(lengths) values.
    """
    size = lengths.where(scored, 0.0)
    number = size.sum().clamp(min=1)
    apart = (centred - (centred * size).sum() / number).where(scored, 0.0)
    return apart / ((apart.square() * size).sum() / (number - 1).clamp(min=1) + 1e-8).sqrt()


def nonzero_share(x: Tensor, scored: Tensor) -> float:
    """The share of scored samples whose reward is not 0, which GPG (arXiv:2504.02546) divides by; 1 where none is."""
    number = int((scored & (x != 0)).sum())
    return number / int(scored.sum()) if number else 1.0


def top_groups(std: Tensor, share: float) -> Tensor:
    """Which of the G groups are the max(1, int(share * G)) of largest std [G], bool [G]; of equal ones the earlier."""
    number = max(1, int(share * len(std)))
    kept = torch.zeros(len(std), dtype=torch.bool)
    kept[torch.argsort(std, descending=True, stable=True)[:number]] = True
    return kept
