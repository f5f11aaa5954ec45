"""Arithmetic on noise levels, floats or tensors: a step is worked out on them before it touches a latent."""

import math

import torch
from torch import Tensor

from samplers.gaussian import Gaussian

Level = float | Tensor


def affine(x: Tensor, v: Tensor, a: Level, b: Level, std: Level) -> Gaussian:
    """The Gaussian with mean a x + b v [R, ...], in float32 or as wide as x or v. a, b, std: broadcastable to x."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, v.dtype), torch.float32)
    x, v = x.to(dtype), v.to(dtype)
    a, b = (level.to(dtype) if isinstance(level, Tensor) else level for level in (a, b))
    # In place, because the product is ours alone: one latent-sized temporary less.
    mean = (v * b).add_(x if isinstance(a, float) and a == 1.0 else x * a)
    return Gaussian(mean, std.to(mean) if isinstance(std, Tensor) else mean.new_full((), std))


def difference(s: Level, s_next: Level) -> Level:
    """dt = s_next - s. Raises ValueError for a step upwards of floats; to look at tensors would stall a GPU."""
    dt = s_next - s
    if not isinstance(dt, Tensor) and dt > 0:
        raise ValueError(f"s_next={s_next} is above s={s}: a step goes down, give s_next <= s")
    return dt


def fraction(noise: Level, name: str) -> Level:
    """`noise` itself. Raises ValueError for a float outside [0, 1], where the step `name` has no meaning."""
    if not isinstance(noise, Tensor) and not 0 <= noise <= 1:
        raise ValueError(f"noise={noise} of {name}: give 0 (deterministic) to 1 (all of the noise drawn afresh)")
    return noise


def smaller(a: Level, b: Level) -> Level:
    """The minimum of two levels."""
    if isinstance(a, Tensor):
        return a.clamp(max=b)
    return b.clamp(max=a) if isinstance(b, Tensor) else min(a, b)


def quotient(a: Level, b: Level) -> Level:
    """a / b, and 0 where b is 0: a step that divides by such a level rests there."""
    if isinstance(b, Tensor):
        zero = b == 0
        return torch.where(zero, 0.0, a / b.masked_fill(zero, 1))
    return a / b if b != 0 else (torch.zeros_like(a) if isinstance(a, Tensor) else 0.0)


def where_moving(s: Level, s_next: Level, value: Level) -> Level:
    """`value` where s_next differs from s, 0 where the step rests."""
    rests = s_next == s
    if isinstance(rests, Tensor):
        return torch.where(rests, 0.0, value)
    return value if not rests else (torch.zeros_like(value) if isinstance(value, Tensor) else 0.0)


def root(square: Level) -> Level:
    """The square root. Negative by rounding counts as 0."""
    return square.clamp(min=0).sqrt() if isinstance(square, Tensor) else math.sqrt(max(square, 0.0))


def sine(angle: Level) -> Level:
    """The sine of an angle in radians."""
    return angle.sin() if isinstance(angle, Tensor) else math.sin(angle)


def highest(level: Level) -> float:
    """A level; of those of rows or tokens the highest."""
    return float(level.max()) if isinstance(level, Tensor) else float(level)
