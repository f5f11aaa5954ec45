"""What becomes of a reward before its gradient moves the weights: limits, control words, discounts.

How the gradient goes back through the steps of a walk is in core/backward_pull.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def hinge(reward: Tensor, threshold: float) -> Tensor:
    """max(threshold - reward, 0), in the shape of reward: what is good enough gives no gradient.

    ReFL (ImageReward, arXiv:2304.05977: threshold 2, times 1e-3) and SRPO (threshold 0.7, halved).
    """
    return (threshold - reward).relu()


def relative_reward(wanted: Tensor, other: Tensor, discount: float) -> Tensor:
    """(1 + discount) wanted - other: how much better a picture fits one text than another, in the shape of both.

    wanted, other: rewards of the same pictures with the control words of two texts put before the prompt. Source: SRPO
    (arXiv:2509.06942, its code), where `wanted` is the positive text when noise is taken away and the negative one when
    it is put in.
    """
    return (1 + discount) * wanted - other


def discount_at(bounds: Sequence[float], place: int, number: int) -> float:
    """The entry `place` of `number` equally spaced discounts between the two bounds."""
    first, last = bounds
    return first + (last - first) * place / (number - 1)


def leap_weights(gaps: Tensor, floor: float) -> Tensor:
    """1 / sum over leaps of max(gap, floor), [r], of the distances [r, k] of leaps from the walk.

    Samples that the leaps tell little of count less. Source: LeapAlign (arXiv:2604.15311, its code), floor 0.1.
    """
    return 1 / gaps.clamp(min=floor).sum(1)


def quantiles(values: Sequence[float], shares: Tensor) -> Tensor:
    """The quantiles of some values at shares in (0, 1), in their shape: linear between the sorted values.

    Value i of n stands at the share (i + 1/2) / n; outside the first and the last it stays the same.
    """
    known = torch.tensor(sorted(values)).to(shares)
    place = (shares * len(known) - 0.5).clamp(0, len(known) - 1)
    low = place.floor().long()
    return known[low].lerp(known[(low + 1).clamp(max=len(known) - 1)], place - low)
