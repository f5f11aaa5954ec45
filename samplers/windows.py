"""Which steps of a walk draw noise and which are trained.

Each function returns a sorted, non-empty tuple of step indices and depends on nothing but its arguments: the members of
a group, all ranks and a resumed run see the same window. (Published code draws it per process or per call, and so
compares samples that were perturbed at different steps.)

The random ones are seeded, as where they are published, with the sum of `seed` and `iteration`: runs whose seeds are
neighbours would meet the same windows, one iteration apart. A run takes its seed from `seed_of` instead.
"""

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import torch


class Roles(NamedTuple):
    """A window that draws noise at more steps than it trains: both sorted, `trained` a part of `stochastic`."""

    stochastic: tuple[int, ...]
    trained: tuple[int, ...]


def seed_of(run: int, iteration: int) -> int:
    """The seed, of 63 bits, of the window that a run draws in an iteration: runs of any two seeds draw independently.

    run: the run's own seed. Give the draw no iteration besides.
    """
    text = f"window {run} {_require_iteration(iteration)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def all_steps(
    num_steps: int, *, skip_last: Annotated[int, ">= 0"] = 1, draw_last: bool = False
) -> tuple[int, ...] | Roles:
    """Every step but the last `skip_last` (Flow-GRPO).

    The last one draws next to no noise, so its log-prob is all but singular. draw_last: the steps that are left out
    draw noise too, untrained, as in Flow-GRPO's code.
    """
    if not 0 <= skip_last < num_steps:
        raise ValueError(f"skip_last={skip_last} of {num_steps} steps: give 0 to {num_steps - 1}")
    trained = tuple(range(num_steps - skip_last))
    return Roles(tuple(range(num_steps)), trained) if draw_last else trained


def first(num_steps: int, *, size: Annotated[int, ">= 1"]) -> tuple[int, ...]:
    """The first `size` steps, which decide the layout of an image."""
    _require_range(num_steps, size, 0, num_steps)
    return tuple(range(size))


def frozen(num_steps: int, *, size: Annotated[int, ">= 1"], low: Annotated[int, ">= 0"] = 0) -> tuple[int, ...]:
    """`size` adjacent steps from `low` on, in every iteration (MixGRPO-Flash*)."""
    _require_range(num_steps, size, low, num_steps)
    return tuple(range(low, low + size))


def share_of_drawn(num_steps: int, *, share: Annotated[float, "in (0, 1]"], seed: int) -> Roles:
    """Noise at all steps but the last; trains a random share of them, drawn each iteration (DanceGRPO)."""
    return Roles(tuple(range(num_steps - 1)), fraction(num_steps, share=share, seed=seed))


def fraction(num_steps: int, *, share: float, seed: int, iteration: int = 0) -> tuple[int, ...]:
    """int((num_steps - 1) * share) of all steps but the last, anew each iteration: what DanceGRPO trains of a walk that
    draws at every step (arXiv 2505.07818). Its code draws them for each sample on its own."""
    size = int((num_steps - 1) * share)
    if not 1 <= size < num_steps:
        raise ValueError(f"fraction={share} of {num_steps - 1} steps is {size}: give 1/{num_steps - 1} to 1")
    return random_range(num_steps, size=size, low=0, high=num_steps - 1, iteration=iteration, seed=seed)


def random_subset(
    num_steps: int,
    *,
    size: Annotated[int, ">= 1"],
    low: Annotated[int, ">= 0"] = 0,
    high: Annotated[int, ">= 1"] | None = None,
    steps: Annotated[list[int], "a list of steps that rise, such as [1, 2, 5]"] | None = None,
    seed: int,
) -> tuple[int, ...]:
    """`size` steps of the range [low, high) or of the list `steps`, drawn each iteration (Flow-Factory).

    high: all but the last step where it is null.
    """
    if steps is not None:
        return random_steps(steps, size=size, seed=seed)
    return random_range(num_steps, size=size, low=low, high=num_steps - 1 if high is None else high, seed=seed)


def random_range(num_steps: int, *, size: int, low: int, high: int, seed: int, iteration: int = 0) -> tuple[int, ...]:
    """`size` distinct steps of [low, high), not necessarily adjacent, anew each iteration (Flow-Factory's rule)."""
    _require_range(num_steps, size, low, high)
    return random_steps(range(low, high), size=size, iteration=iteration, seed=seed)


def random_steps(steps: Sequence[int], *, size: int, seed: int, iteration: int = 0) -> tuple[int, ...]:
    """`size` of these steps, which rise, anew each iteration (Flow-Factory's rule for its list `sde_steps`)."""
    if not 1 <= size <= len(steps):
        raise ValueError(f"size={size} of the steps {list(steps)}: give 1 to {len(steps)}")
    generator = torch.Generator().manual_seed(seed + _require_iteration(iteration))
    return tuple(sorted(steps[i] for i in torch.randperm(len(steps), generator=generator)[:size].tolist()))


def random_adjacent(
    num_steps: int,
    *,
    size: Annotated[int, ">= 1"],
    low: Annotated[int, ">= 0"] = 0,
    high: Annotated[int, ">= 1"] | None = None,
    seed: int,
) -> tuple[int, ...]:
    """`size` adjacent steps of the range [low, high), drawn each iteration (Flow-GRPO-Fast).

    high: all but the last step where it is null.
    """
    return random_window(num_steps, size=size, low=low, high=num_steps - 1 if high is None else high, seed=seed)


def random_window(num_steps: int, *, size: int, low: int, high: int, seed: int, iteration: int = 0) -> tuple[int, ...]:
    """`size` adjacent steps within [low, high), each start equally likely, anew each iteration (Flow-GRPO-Fast)."""
    _require_range(num_steps, size, low, high)
    start = random.Random(seed + _require_iteration(iteration)).randint(low, high - size)
    return tuple(range(start, start + size))


def progressive(
    num_steps: int,
    *,
    size: Annotated[int, ">= 1"],
    interval: Annotated[int, ">= 1"],
    stride: Annotated[int, ">= 0"] = 1,
    iteration: int,
    roll_back: bool = True,
    high: Annotated[int, ">= 1"] | None = None,
) -> tuple[int, ...]:
    """`size` adjacent steps, `stride` further towards the data every `interval` iterations (MixGRPO, arXiv 2507.21802).

    high: exclusive upper step, by default num_steps - 1 (all but the last); MixGRPO uses num_steps - 2. stride 0 keeps
    the window in place.
    roll_back: start anew after a sweep; otherwise stay at the last window.

    The published code lets the start run on to `high` itself: its windows shrink at the end of a sweep and the last one
    may be empty, an interval without any loss. Here the start waits at high - size meanwhile, so that the window is
    always full. A sweep keeps its published length, and wherever the published window is full the two agree.
    """
    if interval < 1:
        raise ValueError(f"interval={interval}: give 1 or more")
    return _sweep(num_steps, size, high, stride, roll_back, iteration, lambda start, high: interval)


def decay(
    num_steps: int,
    *,
    size: Annotated[int, ">= 1"],
    interval: Annotated[int, ">= 1"],
    shortest: Annotated[int, ">= 1"],
    stride: Annotated[int, ">= 0"] = 1,
    iteration: int,
    roll_back: bool = True,
    high: Annotated[int, ">= 1"] | None = None,
) -> tuple[int, ...]:
    """`progressive` with stays that shorten from `interval` iterations at step 0 towards `shortest` at step `high`.

    A window that starts at step k stays int(interval (1 - k / high) + shortest k / high) iterations (MixGRPO's decay).
    """
    if not 1 <= shortest <= interval:
        raise ValueError(f"interval={interval}, shortest={shortest}: give 1 <= shortest <= interval")

    def stay(start: int, high: int) -> int:
        return max(shortest, int(interval * (1 - start / high) + shortest * (start / high)))

    return _sweep(num_steps, size, high, stride, roll_back, iteration, stay)


def exp_decay(
    num_steps: int,
    *,
    size: Annotated[int, ">= 1"],
    interval: Annotated[int, ">= 1"],
    rate: Annotated[float, ">= 0"] = 0.1,
    hold: Annotated[int, ">= 0"] = 13,
    stride: Annotated[int, ">= 0"] = 1,
    iteration: int,
    roll_back: bool = True,
    high: Annotated[int, ">= 1"] | None = None,
) -> tuple[int, ...]:
    """`progressive` with stays that fall off exponentially behind step `hold`.

    A window that starts at step k stays ceil(interval exp(-rate max(0, k - hold))) iterations (MixGRPO's exp_decay and
    its constants).
    """
    if interval < 1 or rate < 0 or hold < 0:
        raise ValueError(
            f"interval={interval}, rate={rate}, hold={hold}: give interval 1 or more, the others 0 or more"
        )

    def stay(start: int, high: int) -> int:
        return max(1, math.ceil(interval * math.exp(-rate * max(0, start - hold))))

    return _sweep(num_steps, size, high, stride, roll_back, iteration, stay)


def _sweep(
    num_steps: int,
    size: int,
    high: int | None,
    stride: int,
    roll_back: bool,
    iteration: int,
    stay: Callable[[int, int], int],
) -> tuple[int, ...]:
    """The window of an iteration where one that starts at step k stays stay(k, high) iterations."""
    high = num_steps - 1 if high is None else high
    _require_range(num_steps, size, 0, high)
    if stride < 0:
        raise ValueError(f"stride={stride}: give 0 or more")
    starts = range(0, high + 1, stride) if stride else range(1)
    stays = [stay(start, high) for start in starts]
    left = _require_iteration(iteration)
    if roll_back:
        left %= sum(stays)
    at = 0
    while at < len(stays) - 1 and left >= stays[at]:
        left -= stays[at]
        at += 1
    start = min(starts[at], high - size)
    return tuple(range(start, start + size))


# kind of window in a recipe -> the function, whose arguments are its keys; a run gives seed and iteration
WINDOWS = {
    "all": all_steps,
    "first": first,
    "frozen": frozen,
    "random": random_subset,
    "random_window": random_adjacent,
    "progressive": progressive,
    "decay": decay,
    "exp_decay": exp_decay,
    "fraction": share_of_drawn,
}


def pruned(
    steps: tuple[int, ...], *, interval: int | None, stop: int, iteration: int, until: int | None = None
) -> tuple[int, ...]:
    """Steps that a branching walk draws at and does not train: `steps`, moved one nearer to the start every `interval`
    iterations until the first of them is `stop` (BranchGRPO's sliding depth pruning); unmoved without an interval, and
    none after iteration `until`."""
    if not steps or (until is not None and iteration > until):
        return ()
    if interval is None:
        return steps
    shift = min(_require_iteration(iteration) // interval, max(steps[0] - stop, 0))
    return tuple(step - shift for step in steps)


def _require_range(num_steps: int, size: int, low: int, high: int) -> None:
    if not 0 <= low < high <= num_steps:
        raise ValueError(f"low={low}, high={high} is no range of steps: give 0 <= low < high <= num_steps={num_steps}")
    if not 1 <= size <= high - low:
        raise ValueError(f"size={size} does not fit the steps {low} to {high - 1}: give 1 to {high - low}")


def _require_iteration(iteration: int) -> int:
    if iteration < 0:
        raise ValueError(f"iteration={iteration} is negative: count iterations from 0")
    return iteration
