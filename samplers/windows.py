"""Which steps of a walk draw noise and which are trained.

Each function returns a sorted, non-empty tuple of step indices and depends on nothing but its arguments: the members of
a group, all ranks and a resumed run see the same window. (Published code draws it per process or per call, and so
compares samples that were perturbed at different steps.)
"""

import random

import torch


def all_steps(num_steps: int, *, skip_last: int = 1) -> tuple[int, ...]:
    """Every step but the last `skip_last`. The last one draws next to no noise, so its log-prob is all but singular."""
    if not 0 <= skip_last < num_steps:
        raise ValueError(f"skip_last={skip_last} of {num_steps} steps: give 0 to {num_steps - 1}")
    return tuple(range(num_steps - skip_last))


def first(num_steps: int, *, size: int) -> tuple[int, ...]:
    """The first `size` steps, where the layout of an image is decided."""
    _require_range(num_steps, size, 0, num_steps)
    return tuple(range(size))


def random_range(num_steps: int, *, size: int, low: int, high: int, iteration: int, seed: int) -> tuple[int, ...]:
    """`size` distinct steps of [low, high), not necessarily adjacent, anew each iteration (Flow-Factory's rule)."""
    _require_range(num_steps, size, low, high)
    generator = torch.Generator().manual_seed(seed + _require_iteration(iteration))
    return tuple(sorted(low + step for step in torch.randperm(high - low, generator=generator)[:size].tolist()))


def random_window(num_steps: int, *, size: int, low: int, high: int, iteration: int, seed: int) -> tuple[int, ...]:
    """`size` adjacent steps within [low, high), each start equally likely, anew each iteration (Flow-GRPO-Fast)."""
    _require_range(num_steps, size, low, high)
    start = random.Random(seed + _require_iteration(iteration)).randint(low, high - size)
    return tuple(range(start, start + size))


def progressive(
    num_steps: int,
    *,
    size: int,
    interval: int,
    stride: int,
    iteration: int,
    roll_back: bool = True,
    high: int | None = None,
) -> tuple[int, ...]:
    """`size` adjacent steps, `stride` further towards the data every `interval` iterations (MixGRPO, arXiv 2507.21802).

    high: exclusive upper step, by default num_steps - 1 (all but the last); MixGRPO uses num_steps - 2. stride 0 keeps
    the window in place.
    roll_back: start anew after a sweep; otherwise stay at the last window.

    The published code lets the start run on to `high` itself: its windows shrink at the end of a sweep and the last one
    may be empty, an interval without any loss. Here the start waits at high - size meanwhile, so that the window is
    always full. A sweep keeps its published length, and wherever the published window is full the two agree.
    """
    high = num_steps - 1 if high is None else high
    _require_range(num_steps, size, 0, high)
    if interval < 1 or stride < 0:
        raise ValueError(f"interval={interval}, stride={stride}: give interval 1 or more, stride 0 or more")
    moves = _require_iteration(iteration) // interval
    if roll_back and stride:
        moves %= high // stride + 1
    start = min(moves * stride, high - size)
    return tuple(range(start, start + size))


def pruned(steps: tuple[int, ...], *, interval: int | None, stop: int, iteration: int) -> tuple[int, ...]:
    """Steps that a branching walk draws at and does not train: `steps`, moved one nearer to the start every `interval`
    iterations until the first of them is `stop` (BranchGRPO's sliding depth pruning); unmoved without an interval."""
    if interval is None or not steps:
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
