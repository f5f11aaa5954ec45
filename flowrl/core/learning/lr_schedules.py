"""How the learning rate falls behind the warmup: a factor in [0, 1] of the share of the run that is left.

A function (left, *, ...): left falls from 1, at the end of the warmup, to 0, at the end of the run.
"""

import math


def constant(left: float) -> float:
    """The learning rate is constant."""
    return 1.0


def linear(left: float) -> float:
    """The learning rate falls linearly to 0."""
    return left


def cosine(left: float) -> float:
    """The learning rate falls to 0 along a half cosine."""
    return 0.5 * (1 - math.cos(math.pi * left))


# name in a recipe -> its function
LR_SCHEDULES = {"constant": constant, "linear": linear, "cosine": cosine}
