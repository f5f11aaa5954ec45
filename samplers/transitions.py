"""One denoising step: (x, v, s, s_next) -> Gaussian over the next latent.

Every transition has the signature `step(x, v, s, s_next, *, noise, s_cap)`:
  x, v     latent and velocity [R, ...], widened to float32 at least. The gradient reaches v through the mean.
  s, s_next, s_cap   floats, or tensors broadcastable to x ([R, 1, ...] a row, [R, T, 1] a token).
           A step's coefficients are as precise as its levels: floats are best.
  noise    strength of the injected noise, >= 0. At 0 the mean equals `ode` bit for bit and the std is 0, as it is for
           elements with s_next == s.
Each is written as mean = A x + B v with A, B worked out on the (usually scalar) noise levels: three passes over the
latent. Without noise A is exactly 1 and B exactly dt; A x and B v are rounded one by one, as in an Euler step.
"""

from torch import Tensor

from samplers.facts import facts
from samplers.gaussian import Gaussian
from samplers.levels import Level, affine, difference, quotient, root, smaller


@facts(noise={None: 0.7, "sd3": 0.7, "flux": 0.9, "qwen_image": 1.2, "qwen_image_edit": 1.5})
def flow_sde(x: Tensor, v: Tensor, s: Level, s_next: Level, *, noise: Level, s_cap: Level) -> Gaussian:
    """The Flow-GRPO step: Euler-Maruyama on the SDE with the marginals of the flow (arXiv 2505.05470).

    With g^2 = noise^2 s / (1 - min(s, s_cap)) and the score of the flow, per unit of |dt|:
      mean = x + v dt + (g^2 / 2) score |dt| = x + dt [v + noise^2 / (2 (1 - min(s, s_cap))) (x + (1 - s) v)]
      std  = g sqrt(|dt|)
    s_cap: the second entry of the sigma table. g diverges at s = 1. Published code replaces s in the denominator by
    that entry when s is exactly 1; on tables that begin at 0.999999 this misses and the first step has std 44 or more.
    The minimum covers both and changes no other step. The first step from s = 1 has std = noise however many follow.
    """
    dt = difference(s, s_next)
    per_level = noise * noise / (1 - smaller(s, s_cap))  # g^2 / s: never divides by s, which may be 0
    pull = 0.5 * per_level * dt
    return affine(x, v, 1 + pull, dt + pull * (1 - s), root(per_level * s * -dt))


@facts(noise={None: 1.0})
def wan_sde(x: Tensor, v: Tensor, s: Level, s_next: Level, *, noise: Level, s_cap: Level) -> Gaussian:
    """The step that Flow-GRPO takes on Wan: as `flow_sde`, with a diffusion that does not diverge at s = 1.

    g = noise s_cap s, mean = x + v dt + (g^2 / 2) score |dt|, std = g sqrt(|dt|).

    s_cap: the second entry of the sigma table. Published code has no noise level: its step is noise = 1, whose first
    std is about sqrt(|dt|) where that of `flow_sde` is its whole noise level.
    """
    dt = difference(s, s_next)
    diffusion = noise * s_cap
    pull = 0.5 * diffusion * diffusion * s * dt
    return affine(x, v, 1 + pull, dt + pull * (1 - s), diffusion * s * root(-dt))


@facts(noise={None: 0.3, "hunyuan": 0.25})
def dance_sde(x: Tensor, v: Tensor, s: Level, s_next: Level, *, noise: Level, s_cap: Level | None = None) -> Gaussian:
    """The DanceGRPO step: Euler-Maruyama with the same diffusion at every level (arXiv 2505.07818).

      mean = x + v dt + (noise^2 / 2) score |dt|,   std = noise sqrt(|dt|)
    noise: the paper's eta. It is no fraction of the level: near s = 0 it exceeds the noise that the latent should hold,
    which is why DanceGRPO decodes the prediction of x_0 at the last step and never trains that one.
    """
    dt = difference(s, s_next)
    pull = quotient(0.5 * noise * noise * dt, s)
    return affine(x, v, 1 + pull, dt + pull * (1 - s), noise * root(-dt))


def ve_sde(x: Tensor, v: Tensor, s: Level, s_next: Level, *, noise: Level, s_cap: Level | None = None) -> Gaussian:
    """A stochastic step for tables with levels above 1, where x_s = x_0 + s eps and v = dx/ds (EDM, arXiv 2206.00364).

    The probability-flow ODE dx = -s score ds (sigma(t) = t there) gives v = -s score. Langevin dynamics of
    diffusion g adds (g^2 / 2) score |dt| + g dW and keeps every marginal. With g^2 = 2 noise^2 s the first part
    is -noise^2 v |dt| = noise^2 v dt, so
      mean = x + (1 + noise^2) v dt,   std = sqrt(2 noise^2 s |dt|).
    noise = 1 is the time reversal of the forward diffusion dx = sqrt(2 s) dW.
    """
    dt = difference(s, s_next)
    return affine(x, v, 1.0, (1 + noise * noise) * dt, root(2 * noise * noise * s * -dt))


@facts(stochastic=False)
def ode(x: Tensor, v: Tensor, s: Level, s_next: Level, *, noise: Level = 0.0, s_cap: Level | None = None) -> Gaussian:
    """The Euler step x + v dt as a Gaussian of std 0. noise and s_cap are ignored; they keep the signature common."""
    return affine(x, v, 1.0, difference(s, s_next), 0.0)
