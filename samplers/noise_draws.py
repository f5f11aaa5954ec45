"""At which noise levels finished samples are looked at again, anew each iteration.

Each function returns `number` levels, falling, and depends on nothing but its arguments, so that all ranks and a
resumed run meet the same ones. Draws are stratified: one in each of `number` parts of equal probability. A level is a
share of noise in (0, 1], or a whole number, which stands for the level of that step of the walk.
"""

import math
import random
from statistics import NormalDist

from samplers.direct_align import align_branches, align_levels
from samplers.visits import Injected, Visited

LEAST = 1e-3  # a level of 0 is the sample itself, where nothing can be said of it


def uniform(number: int, *, low: float = 0.0, high: float = 1.0, seed: int) -> tuple[float, ...]:
    """Levels spread evenly over (low, high).

    Raises ValueError for a number below 1, or unless 0 <= low < high <= 1.
    """
    return tuple(_between(low, high, share) for share in _stratified(number, low, high, seed))


def logit_normal(
    number: int, *, mean: float = 0.0, std: float = 1.0, low: float = 0.0, high: float = 1.0, seed: int
) -> tuple[float, ...]:
    """Levels whose logit is normal, as Stable Diffusion 3 is trained with (arXiv 2403.03206), scaled to (low, high).

    mean: of the logit; below 0 the levels hold less noise. Raises as `uniform`, and for a std that is not above 0.
    """
    if std <= 0:
        raise ValueError(f"std={std}: give a number above 0")
    normal = NormalDist(mean, std)
    shares = (normal.inv_cdf(min(max(u, 1e-6), 1 - 1e-6)) for u in _stratified(number, low, high, seed))
    return tuple(_between(low, high, 1 / (1 + math.exp(-z))) for z in shares)


def of_walk(number: int, *, steps: int, first: int = 0, last: int | None = None, seed: int) -> tuple[int, ...]:
    """The levels of some of the walk's own steps from number `first` to below number `last` (None: all of `steps`).

    DiffusionNFT trains at 99 % of them (arXiv 2509.16117, its code), in a random order. Raises ValueError where there
    are fewer.
    """
    end = steps if last is None else min(last, steps)
    if not 1 <= number <= end - first:
        raise ValueError(f"number={number} of the steps from {first} to {end - 1}: give 1 to {max(end - first, 0)}")
    return tuple(sorted(random.Random(seed).sample(range(first, end), number)))


def tail(low: int, high: int, *, steps: int, seed: int) -> tuple[Visited, ...]:
    """The last steps of a walk of `steps`, how many is drawn evenly from low to high.

    AlignProp (arXiv 2310.03739) draws where its gradient stops anew each iteration. Raises ValueError unless
    1 <= low <= high <= steps.
    """
    if not 1 <= low <= high <= steps:
        raise ValueError(f"low={low}, high={high}: give 1 <= low <= high <= {steps}")
    number = random.Random(seed).randint(low, high)
    return tuple(Visited(step) for step in range(steps - number, steps))


def align(
    number: int = 1000,
    *,
    low: float = 0.75,
    high: float = 0.964,
    truth: float = 0.9,
    inversion: bool = True,
    seed: int,
) -> tuple[Injected, ...]:
    """A step between two of `number` equally spaced levels from high down to low, and one back up (inversion).

    Where it lies is drawn as in SRPO's code (arXiv 2509.06942): at least 5 levels, or a fifth of them, from the ends;
    its length is at most (1 - truth) of the levels. Raises ValueError for number < 3 or levels that do not fall.
    """
    if number < 3 or not 0 < low < high < 1:
        raise ValueError(f"number={number}, low={low}, high={high}: give 3 or more, and 0 < low < high < 1")
    levels = align_levels(high, low, number).tolist()
    margin = min(5, number // 5) or 1
    middle = random.Random(seed).randint(margin, number - margin)
    branches = align_branches(number, min(middle, number - 1), truth)
    return tuple(Injected(levels[b.begin], levels[b.end]) for b in branches[: 1 + inversion])


def _stratified(number: int, low: float, high: float, seed: int) -> list[float]:
    """Shares in (0, 1), falling."""
    if number < 1:
        raise ValueError(f"number={number}: give 1 or more")
    if not 0 <= low < high <= 1:
        raise ValueError(f"low={low}, high={high}: give 0 <= low < high <= 1")
    draws = random.Random(seed)
    return [(part + draws.random()) / number for part in reversed(range(number))]


def _between(low: float, high: float, share: float) -> float:
    return max(low + (high - low) * share, LEAST)
