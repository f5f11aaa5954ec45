"""Columns of a look at finished samples that are more than a noise level: which state is looked at, and whose step.

Everything here is for walks of the ODE.
"""

from typing import NamedTuple


class Visited(NamedTuple):
    """The state that a walk had where its step number `step` began, and what becomes of a velocity there.

    to: the step at whose beginning its velocity is said to end, the number of steps for the end of the walk; None: the
    next, as in the walk. through: the share of a gradient that goes on through the velocity to the state. judged: the
    step whose one-step estimate of x_0 is what rewards judge; None: the finished sample. over: the steps [first, last)
    whose lengths those of the columns with an `over` are to stand for: each weighs as all of those over all of these.
    """

    step: int
    to: int | None = None
    through: float = 1.0
    judged: int | None = None
    over: tuple[int, int] | None = None


class Injected(NamedTuple):
    """The sample with the noise that its walk began with put in again, to `level`, from where a step leads to `to`.

    Direct-Align (see direct_align.py): to is below level where noise is taken away, above it where it is put in.
    """

    level: float
    to: float


Column = float | int | Visited | Injected  # a level; the step whose level it is; or one of these
