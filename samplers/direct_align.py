"""Direct-Align: a finished sample is noised with the very noise it came from, stepped once, and recovered exactly.

As the noise is known, x_0 follows from any state without a walk, however noisy the state is; what the model changed in
its one step is all that differs from the sample. Source: SRPO (arXiv:2509.06942, its code).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from samplers.levels import Level


class Branch(NamedTuple):
    """One step between two entries of a table of falling levels. place: where the discount of its reward is read."""

    begin: int
    end: int
    place: int


def align_levels(first: float, last: float, number: int) -> Tensor:
    """`number` levels, equally spaced from first down to last: float32 [number].

    Published: 1000 from 0.964 to 0.750, entries 5 and 25 of a 50-step table of shift 3. Above 0.99 it distorts layouts.
    """
    return torch.linspace(first, last, number)


def align_branches(number: int, middle: int, truth: float) -> tuple[Branch, Branch]:
    """The two steps of an update: one that takes noise away, and one that puts it in (inversion).

    number: of levels; middle in [1, number): what is drawn at random, counted from the last level; truth in [0, 1): the
    share of the sample that is not the model's, 0.9 published: a step has at most (1 - truth) * number + 1 levels.
    """
    length = min(number - middle, int((1 - truth) * number) + 1, middle)
    deep = max(middle - length, 1)
    inner = number - deep
    return (
        Branch(number - middle - length, number - middle, middle),
        Branch(inner, number - min(deep + length, number), deep),
    )


def injected(x0: Tensor, noise: Tensor, s: Level) -> Tensor:
    """The state (1 - s) x_0 + s noise, [R, ...]."""
    return s * noise + (1 - s) * x0
