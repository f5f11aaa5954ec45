"""Scores of completions reshaped by their length, their end and their group, before they are trained on.

Each takes scores [B] of one reward and gives scores [B]; NaN stays NaN. The reported scores stay as they are, and an
evaluation does not reshape.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import Samples


def stop_properly(scores: Tensor, truncated: Tensor, *, factor: float = 0.0) -> Tensor:
    """Scores of completions that their limit ended: multiplied by a factor of 0 or more, or replaced by one below 0.

    ProRL v2, OpenRLHF's code. truncated bool [B].
    """
    return torch.where(truncated, scores * factor if factor >= 0 else torch.full_like(scores, factor), scores)


def cosine_length(
    scores: Tensor,
    lengths: Tensor,
    *,
    limit: int,
    right: float = 0.5,
    correct: tuple[float, float] = (1.0, 0.5),
    wrong: tuple[float, float] = (-0.5, 0.0),
) -> Tensor:
    """Scores that go from `correct[0]` at length 0 to `correct[1]` at the limit along half a cosine, likewise `wrong`.

    Demystifying Long Chain-of-Thought Reasoning (arXiv:2502.03373, eq. 1); the numbers are ms-swift's. lengths int64
    [B]. right: the score from which on a completion counts as correct.
    """
    share = (lengths.to(scores) / limit).clamp(max=1.0)
    falls = (1 + torch.cos(math.pi * share)) / 2  # from 1 to 0
    shaped = [low + (high - low) * falls for high, low in (correct, wrong)]
    return torch.where(scores >= right, *shaped).masked_fill(scores.isnan(), torch.nan)


def difficulty_length(
    scores: Tensor, lengths: Tensor, group: Tensor, *, full: float = 1.0, slope: float = -0.5, offset: float = 0.5
) -> Tensor:
    """Scores plus a term that favours short correct completions, by a budget that a hard prompt has more of: DAST.

    With p the share of a group that scores `full` and L the lengths, budget = p mean(L of those) + (1 - p) max(L), and
    t = (L - budget) / budget: the term is max(slope t + offset, 0.1) of those, min(0.9 t - 0.1, -0.1) of the others
    (arXiv:2503.04472, eq. 2 to 4; UI-R1's code). lengths, group int64 [B].
    """
    term = torch.zeros_like(scores)
    long = lengths.to(scores)
    for label in group.unique():
        mine = (group == label) & ~scores.isnan()
        if not mine.any():
            continue
        best = mine & (scores == full)
        p = best[mine].float().mean()
        mean = long[best].mean() if best.any() else long.new_zeros(())
        budget = (p * mean + (1 - p) * long[mine].max()).clamp(min=1e-8)
        t = (long - budget) / budget
        good, bad = (slope * t + offset).clamp(min=0.1), (0.9 * t - 0.1).clamp(max=-0.1)
        term = torch.where(best, good, torch.where(mine, bad, term))
    return scores + term


def length_bonus(
    scores: Tensor,
    lengths: Tensor,
    group: Tensor,
    *,
    bonus: float = 0.2,
    shortest: int = 320,
    longest: int = 512,
    right: float = 0.1,
) -> Tensor:
    """Scores plus a bonus for correct completions whose length lies in a range, where a group has more than one.

    Video-R1 (arXiv:2503.21776, eq. 4), its code. lengths, group int64 [B]. right: the score above which a completion is
    correct.
    """
    correct = scores > right
    _, index = torch.unique(group, return_inverse=True)
    several = torch.zeros(int(index.max()) + 1 if len(index) else 0).index_add_(0, index, correct.float())[index] > 1
    return scores + bonus * (correct & several & (lengths >= shortest) & (lengths <= longest))


def temporal_bonus(
    scores: Tensor, shuffled: Tensor, group: Tensor, *, bonus: float = 0.3, share: float = 0.8, right: float = 0.1
) -> Tensor:
    """Scores plus a bonus for correct completions where frames in their order help: T-GRPO's contrast of two groups.

    A group earns it where its mean is at least `share` times that of the completions for the same video with its frames
    shuffled (arXiv:2503.21776, eq. 2 and 3). shuffled [P]: that mean for each group, in the order of their numbers; NaN
    for one that has none, which earns nothing.
    """
    labels, index = torch.unique(group, return_inverse=True)
    mean = torch.stack([scores[group == label].nanmean() for label in labels])
    return scores + bonus * ((mean >= share * shuffled)[index] & (scores > right))


def contrasted(scores: Tensor, contrast: Tensor, group: Tensor, **how: Any) -> Tensor:
    """What `temporal_bonus` adds to the scores [B]. contrast [B]: of each sample the mean of those that its group is
    compared with (`Samples.contrast`)."""
    own, other, index = scores.cpu(), contrast.cpu(), group.cpu()
    shuffled = torch.stack([other[index == label][0] for label in torch.unique(index)])
    return (temporal_bonus(own, shuffled, index, **how) - own).nan_to_num().to(scores)


# kind -> (function, what of the samples it reads behind the scores)
SHAPES: dict[str, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    "stop_properly": (stop_properly, ("truncated",)),
    "cosine_length": (cosine_length, ("lengths",)),
    "difficulty_length": (difficulty_length, ("lengths", "group")),
    "length_bonus": (length_bonus, ("lengths", "group")),
}


def shape(scores: Tensor, samples: Samples, kind: str, how: Mapping[str, Any]) -> Tensor:
    """The scores [B] of samples by one of SHAPES. Raises ValueError for samples without lengths."""
    function, reads = SHAPES[kind]
    values = [getattr(samples, name) for name in reads]
    if any(value is None for value in values):
        raise ValueError(f"shape {kind} reads how long completions are; this model does not say")
    return function(scores, *(value.to(scores.device) for value in values), **how)
