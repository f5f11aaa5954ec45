"""One denoising step: (x, v, s, s_next) -> Gaussian over the next latent.

Every transition has the signature `step(x, v, s, s_next, *, noise, s_cap)`:
  x, v     latent and velocity [R, ...], widened to float32 at least. The gradient reaches v through the mean.
  s, s_next, s_cap   floats, or tensors broadcastable to x ([R, 1, ...] a row, [R, T, 1] a token).
  noise    strength of the injected noise, >= 0. At 0 the mean equals `ode` bit for bit and the std is 0, as it is for
           elements with s_next == s.
Each is written as mean = A x + B v with A, B worked out on the (usually scalar) noise levels: three passes over the
latent. Without noise A is exactly 1 and B exactly dt; A x and B v are rounded one by one, as in an Euler step.
"""

import math
from typing import Any

import torch
from torch import Tensor

from samplers.gaussian import Gaussian

Level = float | Tensor


def flow_sde(x: Tensor, v: Tensor, s: Level, s_next: Level, *, noise: Level, s_cap: Level) -> Gaussian:
    """The Flow-GRPO step: Euler-Maruyama on the SDE with the marginals of the flow (arXiv 2505.05470).

    With g^2 = noise^2 s / (1 - min(s, s_cap)) and the score of the flow, per unit of |dt|:
      mean = x + v dt + (g^2 / 2) score |dt| = x + dt [v + noise^2 / (2 (1 - min(s, s_cap))) (x + (1 - s) v)]
      std  = g sqrt(|dt|)
    s_cap: the second entry of the sigma table. g diverges at s = 1. Published code replaces s in the denominator by
    that entry when s is exactly 1; on tables that begin at 0.999999 this misses and the first step has std 44 or more.
    The minimum covers both and changes no other step. The first step from s = 1 has std = noise however many follow.
    """
    dt = _difference(s, s_next)
    per_level = noise * noise / (1 - _smaller(s, s_cap))  # g^2 / s: never divides by s, which may be 0
    pull = 0.5 * per_level * dt
    return _affine(x, v, 1 + pull, dt + pull * (1 - s), _root(per_level * s * -dt))


def ve_sde(x: Tensor, v: Tensor, s: Level, s_next: Level, *, noise: Level, s_cap: Level | None = None) -> Gaussian:
    """A stochastic step for tables with levels above 1, where x_s = x_0 + s eps and v = dx/ds (EDM, arXiv 2206.00364).

    The probability-flow ODE dx = -s score ds (sigma(t) = t there) gives v = -s score. Langevin dynamics of
    diffusion g adds (g^2 / 2) score |dt| + g dW and keeps every marginal. With g^2 = 2 noise^2 s the first part
    is -noise^2 v |dt| = noise^2 v dt, so
      mean = x + (1 + noise^2) v dt,   std = sqrt(2 noise^2 s |dt|).
    noise = 1 is the time reversal of the forward diffusion dx = sqrt(2 s) dW.
    """
    dt = _difference(s, s_next)
    return _affine(x, v, 1.0, (1 + noise * noise) * dt, _root(2 * noise * noise * s * -dt))


def ode(x: Tensor, v: Tensor, s: Level, s_next: Level, *, noise: Level = 0.0, s_cap: Level | None = None) -> Gaussian:
    """The Euler step x + v dt as a Gaussian of std 0. noise and s_cap are ignored; they keep the signature common."""
    return _affine(x, v, 1.0, _difference(s, s_next), 0.0)


# A plan with stochastic steps needs a transition that draws: callers read this mark before any weight is loaded.
flow_sde.stochastic = True  # pyright: ignore[reportFunctionMemberAccess]
ve_sde.stochastic = True  # pyright: ignore[reportFunctionMemberAccess]
ode.stochastic = False  # pyright: ignore[reportFunctionMemberAccess]


def is_stochastic(transition: Any) -> bool:
    """Whether a transition draws. A user's own function counts as drawing unless it carries `stochastic = False`."""
    return getattr(transition, "stochastic", True)


def _affine(x: Tensor, v: Tensor, a: Level, b: Level, std: Level) -> Gaussian:
    dtype = torch.promote_types(torch.promote_types(x.dtype, v.dtype), torch.float32)
    x, v = x.to(dtype), v.to(dtype)
    # In place, because the product is ours alone: one latent-sized temporary less.
    mean = (v * b).add_(x if isinstance(a, float) and a == 1.0 else x * a)
    return Gaussian(mean, std.to(mean) if isinstance(std, Tensor) else mean.new_full((), std))


def _difference(s: Level, s_next: Level) -> Level:
    dt = s_next - s
    if not isinstance(dt, Tensor) and dt > 0:
        raise ValueError(f"s_next={s_next} is above s={s}: a step goes down, give s_next <= s")
    return dt


def _smaller(a: Level, b: Level) -> Level:
    if isinstance(a, Tensor):
        return a.clamp(max=b)
    return b.clamp(max=a) if isinstance(b, Tensor) else min(a, b)


def _root(square: Level) -> Level:
    return square.sqrt() if isinstance(square, Tensor) else math.sqrt(square)
