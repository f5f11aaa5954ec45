"""How the value of a curve gets from one point to the next: the share of the way that is gone.

linear: in equal steps. cosine: slowly at both ends, (1 - cos(pi u)) / 2, CHORD's decay (arXiv:2508.11408). power: u to
the power of coef. exp: coef to the power of the counts that are left; sigmoid: 1 / (1 + exp(-coef (u - mid))), where
mid is the share of the way at which half of it is gone. The last three are the decays of NoisyRollout
(arXiv:2504.13055, its code); neither of the last two begins exactly at its first point.
"""

import math

SHAPES = ("linear", "cosine", "power", "exp", "sigmoid")
COEFS = {"power": 3.0, "exp": 0.95, "sigmoid": 30.0}  # NoisyRollout's


def share(shape: str, count: float, length: float, coef: float | None = None, mid: float = 0.5) -> float:
    """The share, in [0, 1], of the way of `length` counts that is gone after `count` of them."""
    u, coef = count / length, COEFS.get(shape, 1.0) if coef is None else coef
    if shape == "cosine":
        return (1 - math.cos(math.pi * u)) / 2
    if shape == "power":
        return u**coef
    if shape == "exp":
        return coef ** (length - count)
    if shape == "sigmoid":
        return 1 / (1 + math.exp(-coef * (u - mid)))
    return u
