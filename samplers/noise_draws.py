"""At which noise levels finished samples are looked at again, anew each iteration.

Each function returns `number` levels, falling, and depends on nothing but its arguments, so that all ranks and a
resumed run meet the same ones. Draws are stratified: one in each of `number` parts of equal probability. A level is a
share of noise in (0, 1], or a whole number, which stands for the level of that step of the walk.
"""

import math
import random
from statistics import NormalDist

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
