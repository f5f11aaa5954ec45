"""How an intercepted step becomes a distribution over the next state."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.policies.pipelines.steps.intercepted import Step
from samplers.gaussian import Gaussian
from samplers.levels import Level
from samplers.renoising import vp_ddim
from samplers.transitions import ve_sde


@dataclass(frozen=True)
class Dynamics:
    """Transition, noise strength, and the dtypes of stored states and of log-probs."""

    transition: Callable[..., Gaussian]
    noise: float
    reduce: str = "mean"
    storage: torch.dtype = torch.float32
    precision: torch.dtype = torch.float32

    def gaussian(self, step: Step, *, stochastic: bool) -> Gaussian:
        """The distribution of the next state. Off the flow's path, the transition of that path takes over."""
        transition = {"exploding": ve_sde, "preserving": vp_ddim}.get(step.path, self.transition)
        noise = self.noise if stochastic else 0.0
        x, v = step.x.to(self.precision), step.v.to(self.precision)
        return transition(x, v, step.s, step.s_next, noise=noise, s_cap=step.s_cap)

    def log_prob_sums(self, gaussian: Gaussian, x: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """(sums of log-densities [R], counted elements [R]), as the transition's publication scores it."""
        bare = getattr(self.transition, "unit_variance", False)
        return gaussian.log_prob_sums(x.to(gaussian.mean.dtype), kept, unit_variance=bare)


def scale_std(gaussian: Gaussian, factors: Sequence[float]) -> Gaussian:
    """The Gaussian, mean [R, ...], with the std of each row multiplied by its factor."""
    if all(factor == 1 for factor in factors):
        return gaussian
    mean = gaussian.mean
    return gaussian.scaled(torch.tensor(factors, device=mean.device).reshape(-1, *(1,) * (mean.dim() - 1)).to(mean))


def per_row(value: Level, rows: int) -> Tensor:
    """One number per row, float32 [rows], of a level or std that broadcasts to latents: the mean over its elements."""
    value = torch.as_tensor(value, dtype=torch.float32)
    if value.dim() == 0:
        return value.expand(rows)
    if value.shape[0] != rows:
        return value.mean().expand(rows)
    return value.reshape(rows, -1).mean(1)
