"""Steps that recombine the predictions of x_0 and eps: mean = signal x_0 + k eps with k^2 + std^2 = s_next^2.

`signal` is the coefficient of x_0 at s_next, so that the coefficients of signal and noise are right however long the
step is. Signature and levels are those of `transitions`.
"""

import math

from torch import Tensor

from samplers.facts import facts
from samplers.gaussian import Gaussian
from samplers.levels import Level, affine, difference, fraction, quotient, root, sine, where_moving


# Published clip ranges of Flow-CPS (1e-5) belong to this score, not to the density.
@facts(noise={None: 0.8}, share=True, unit_variance=True, draws_at_zero=False)
def cps(x: Tensor, v: Tensor, s: Level, s_next: Level, *, noise: Level, s_cap: Level | None = None) -> Gaussian:
    """The coefficients-preserving step of Flow-CPS (arXiv 2509.05952).

      mean = (1 - s_next) x_0 + s_next cos(noise pi / 2) eps,   std = s_next sin(noise pi / 2)
    noise in [0, 1]: a share of the noise of the level to come, however short the step. Signal and noise keep their
    coefficients; the marginals are those of the flow only where eps is independent of x_0, and not in the limit of many
    steps. The last step (s_next = 0) draws nothing. Scored as published, by -(x - mean)^2: see `facts.unit_variance`.
    """
    dt = difference(s, s_next)
    share = fraction(noise, "cps") * (math.pi / 2)
    lost = where_moving(s, s_next, 2 * s_next * _square(sine(share / 2)))  # s_next (1 - cos): exactly 0 without noise
    std = where_moving(s, s_next, s_next * sine(share))
    return affine(x, v, 1 - lost, dt - lost * (1 - s), std)


@facts(noise={None: 1.0}, share=True, draws_at_zero=False)  # of a flow; vp_ddim draws there
def ddim(x: Tensor, v: Tensor, s: Level, s_next: Level, *, noise: Level, s_cap: Level | None = None) -> Gaussian:
    """DDIM with eta = `noise` in [0, 1] (arXiv 2010.02502, eq. 16) on a flow, whose signal is 1 - s.

      std = noise s_next sqrt(1 - r^2),  r = s_next (1 - s) / (s (1 - s_next))
      mean = (1 - s_next) x_0 + sqrt(s_next^2 - std^2) eps
    The std vanishes with dt like that of an SDE, and the marginals are kept in that limit.
    """
    dt = difference(s, s_next)
    gap = quotient(-dt, s * (1 - s_next))  # 1 - r, without the cancellation
    share = _square(fraction(noise, "ddim")) * gap * (2 - gap)
    lost = s_next * (share / (1 + root(1 - share)))
    return affine(x, v, 1 - lost, dt - lost * (1 - s), s_next * root(share))


def vp_ddim(x: Tensor, v: Tensor, s: Level, s_next: Level, *, noise: Level, s_cap: Level | None = None) -> Gaussian:
    """DDIM with eta = `noise` in [0, 1] for DDPM models, in variance-preserving coordinates (arXiv 2010.02502, eq. 16).

    s = sqrt(1 - alphas_cumprod) is the amplitude of the noise: x_s = a x_0 + s eps, a = sqrt(1 - s^2). v = eps - x_0 as
    everywhere, so that x_0 = (x - s v) / (a + s) and eps = (x + a v) / (a + s); `predictions.velocity_from` makes it of
    what a model predicts.
      std = noise (s_next / s) sqrt(1 - a^2 / a_next^2),   mean = a_next x_0 + sqrt(s_next^2 - std^2) eps
    noise 1 is DDPM sampling, noise 0 the ODE step of these coordinates, where `ode` is none.
    """
    difference(s, s_next)
    a, a_next = signal(s), signal(s_next)
    share = quotient(_square(fraction(noise, "vp_ddim")) * (s - s_next) * (s + s_next), _square(a_next * s))
    kept = s_next * root(1 - share)
    total = a + s
    return affine(x, v, (a_next + kept) / total, (kept * a - s * a_next) / total, s_next * root(share))


def signal(s: Level) -> Level:
    """a = sqrt(1 - s^2): how much of x_0 a latent holds whose noise has the amplitude s."""
    return root((1 - s) * (1 + s))


def _square(level: Level) -> Level:
    return level * level
