"""A whole walk from noise to data in one view: what a rollout does, without a pipeline around it.

    levels = schedules.shifted(10, 3.0)                            # the sigma table, from 1 to 0
    x0, drawn = walk(velocity, eps, levels, flow_sde, noise=0.7, stochastic=(0, 1, 2), generator=generator)
    old = [d.step.log_prob(d.x_next) for d in drawn]                # [R] a drawn step
    again = flow_sde(d.x, velocity(d.x, d.s), d.s, d.s_next, ...)   # a replay: the same Gaussian of the model of now

Pipelines walk by their own loops (flowrl's policies intercept their scheduler); tests and readers walk here.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from samplers.gaussian import Gaussian
from samplers.transitions import ode

Velocity = Callable[[Tensor, float], Tensor]  # (x [R, ...], noise level) -> eps - x_0, shaped like x


class WalkStep(NamedTuple):
    """A step that drew: its number, levels, latents before and after [R, ...], and the distribution it drew from."""

    index: int
    s: float
    s_next: float
    x: Tensor
    x_next: Tensor
    step: Gaussian


def walk(
    velocity: Velocity,
    x: Tensor,
    levels: Tensor | Sequence[float],
    transition: Callable[..., Gaussian] = ode,
    *,
    noise: float = 0.0,
    stochastic: Collection[int] = (),
    generator: torch.Generator | None = None,
) -> tuple[Tensor, list[WalkStep]]:
    """(the latents at the last level [R, ...], the steps that drew, in order).

    x: [R, ...] at levels[0]. levels: the num_steps + 1 noise levels of the walk, falling. stochastic: the steps that
    draw by `transition` with `noise`; all others follow the ODE. generator: of the draws.
    """
    table = torch.as_tensor(levels).tolist()
    drawn = []
    for k, (s, s_next) in enumerate(zip(table, table[1:], strict=False)):
        v = velocity(x, s)
        if k not in stochastic:
            x = ode(x, v, s, s_next).mean
            continue
        step = transition(x, v, s, s_next, noise=noise, s_cap=table[1])
        x_next = step.sample(torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device))
        drawn.append(WalkStep(k, s, s_next, x, x_next, step))
        x = x_next
    return x, drawn
