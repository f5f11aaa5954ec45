"""Columns of a look at finished samples that are more than a noise level: which state is looked at, and whose step.

Everything here is for walks of the ODE.
"""

from typing import NamedTuple


class Visited(NamedTuple):
    """The state that a walk had where its step number `step` began."""

    step: int


class Injected(NamedTuple):
    """The sample with the noise that its walk began with put in again, to `level`, from where a step leads to `to`.

    Direct-Align (see direct_align.py): to is below level where noise is taken away, above it where it is put in.
    """

    level: float
    to: float


Column = float | int | Visited | Injected  # a level; the step whose level it is; or one of these
