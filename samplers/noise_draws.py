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


def of_walk(
    number: int, *, steps: int, first: int = 0, last: int | None = None, bias: float = 0.0, seed: int
) -> tuple[int, ...]:
    """The levels of some of the walk's own steps from number `first` to below number `last` (None: all of `steps`).

    bias: step i is drawn with weight (i + 1)^bias, so that above 0 late steps come more often. DiffusionNFT trains at
    99 % of them (arXiv 2509.16117, its code), in a random order. Raises ValueError where there are fewer.
    """
    end = steps if last is None else min(last, steps)
    if not 1 <= number <= end - first:
        raise ValueError(f"number={number} of the steps from {first} to {end - 1}: give 1 to {max(end - first, 0)}")
    draws = random.Random(seed)
    if not bias:
        return tuple(sorted(draws.sample(range(first, end), number)))
    return _late(number, first, end, bias, draws, zero=0)


def tail(low: int, high: int, *, steps: int, seed: int) -> tuple[Visited, ...]:
    """The last steps of a walk of `steps`, how many is drawn evenly from low to high.

    AlignProp (arXiv 2310.03739) draws where its gradient stops anew each iteration. Raises ValueError unless
    1 <= low <= high <= steps.
    """
    if not 1 <= low <= high <= steps:
        raise ValueError(f"low={low}, high={high}: give 1 <= low <= high <= {steps}")
    number = random.Random(seed).randint(low, high)
    return tuple(Visited(step) for step in range(steps - number, steps))


def again(number: int, *, steps: int) -> tuple[Visited | int, ...]:
    """The last step of a walk, and `number` times the finished sample with fresh noise of that step's level.

    DRaFT-LV (arXiv 2309.17400), where number is 2.
    """
    return (Visited(steps - 1), *(steps - 1,) * number)


def leap(*, steps: int, through: float = 0.3, seed: int) -> tuple[Visited, Visited]:
    """Two leaps in place of the whole walk: from a random step to a later one, and from there to the end.

    through: the share of a gradient that goes on through the second leap's velocity to the first. LeapAlign (arXiv
    2604.15311, its code), share 0.3. Raises ValueError for less than two steps.
    """
    if steps < 2:
        raise ValueError(f"steps={steps}: give 2 or more, for two leaps")
    begin, middle = sorted(random.Random(seed).sample(range(steps), 2))
    return Visited(begin, to=middle, through=0.0), Visited(middle, to=steps, through=through)


def bridge(number: int = 5, *, steps: int, through: float = 0.1, bias: float = 2.0, seed: int) -> tuple[Visited, ...]:
    """`number` steps on both sides of a random one, which is among them and alone lets a gradient through to x.

    Each side has its share of them by length, one at least; step i of a side is drawn with weight (i + 1)^bias. They
    weigh as the whole walk. FlowBP-Bridge (arXiv 2606.11075, its code). Raises ValueError for a number below 2.
    """
    if steps < 2 or not 2 <= number <= steps:
        raise ValueError(f"number={number}: give 2 to {steps}, the steps of the walk")
    draws = random.Random(seed)
    middle = max(draws.sample(range(steps), 2))
    before = min(max(round(number * middle / steps), 1), middle, number - 1)
    before = max(before, number - (steps - middle))
    found = _late(before, 0, middle, bias, draws, 0)
    found += (middle, *_late(number - before - 1, middle + 1, steps, bias, draws, middle + 1))
    return tuple(Visited(step, through=through if step == middle else 0.0, over=(0, steps)) for step in found)


def spaced(number: int = 3, *, steps: int, stop: float = 0.4, seed: int) -> tuple[Visited, ...]:
    """`number` equally spaced steps up to a random one in the last share `stop` of the walk, whose estimate is judged.

    No gradient goes through a velocity to x. Where a walk ends before there are as many, all its steps. DRTune (arXiv
    2405.00760; values as in FlowBP's code, arXiv 2606.11075). Raises ValueError for a number below 1.
    """
    if number < 1:
        raise ValueError(f"number={number}: give 1 or more")
    draws = random.Random(seed)
    last = steps - draws.randint(1, max(min(round(steps * stop), steps), 1))
    number = min(number, last + 1)
    stride = (last + 1) // number
    begin = draws.randint(0, last - (number - 1) * stride)
    found = (begin + i * stride for i in range(number))
    return tuple(Visited(step, to=steps if step == last else None, through=0.0, judged=last) for step in found)


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


def _late(number: int, first: int, end: int, bias: float, draws: random.Random, zero: int) -> tuple[int, ...]:
    """`number` different steps of [first, end), drawn one after the other with weights (i - zero + 1)^bias."""
    left, found = list(range(first, end)), []
    for _ in range(number):
        (step,) = draws.choices(left, [(i - zero + 1) ** bias for i in left])
        left.remove(step)
        found.append(step)
    return tuple(sorted(found))


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
