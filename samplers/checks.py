"""What of the steps and levels of a plan cannot be walked."""

from collections.abc import Sequence

from samplers.visits import Column, Injected, Visited


def require_steps(name: str, steps: tuple[int, ...], num_steps: int) -> None:
    """Raises ValueError unless these steps rise without repeats and lie in [0, num_steps)."""
    if list(steps) != sorted(set(steps)):
        raise ValueError(f"{name}={steps} must rise without repeats: give {tuple(sorted(set(steps)))}")
    if steps and not 0 <= steps[0] <= steps[-1] < num_steps:
        raise ValueError(f"{name}={steps} leaves the walk: give steps from 0 to {num_steps - 1} or raise num_steps")


def require_levels(levels: Sequence[Column], num_steps: int, *, drawn: bool) -> None:
    """Raises ValueError unless finished samples of a walk of num_steps can be noised to these levels.

    drawn: whether its members draw noise, or share the noise that they begin with.
    """
    if levels and drawn:
        raise ValueError("levels belong to a walk that draws no noise and shares none: leave one of the two out")
    for column in levels:
        if isinstance(column, Injected):
            if not (0 < column.level <= 1 and 0 <= column.to < 1):
                raise ValueError(f"{column}: give a level in (0, 1], and one in [0, 1) that the step leads to")
            continue
        to = column.to if isinstance(column, Visited) else None
        if isinstance(column, Visited) and to is not None and not column.step < to <= num_steps:
            raise ValueError(f"{column}: give a step below {num_steps}, and a later one that its velocity leads to")
        level = column.step if isinstance(column, Visited) else column
        if not (0 <= level < num_steps if isinstance(level, int) else 0 < level <= 1):
            raise ValueError(f"level {level}: give a noise level in (0, 1], or a step from 0 to {num_steps - 1}")
