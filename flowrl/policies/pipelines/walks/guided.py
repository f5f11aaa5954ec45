"""A walk whose velocities a reward of noisy latents steers. Nothing is trained, and nothing is scored."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.looks.latent_reward import Features, LatentReward
from flowrl.policies.pipelines.steps.coordinates import coordinates
from flowrl.policies.pipelines.steps.intercepted import Step
from flowrl.policies.pipelines.walks.rollout import RolloutWalk
from flowrl.untyped import JSON
from samplers.guide import guided_velocity
from samplers.levels import highest
from samplers.plan import Table

Rewarding = Callable[[Tensor, Tensor, int], Tensor]  # x, level [R], rows -> reward [R], with gradient to x


@dataclass(frozen=True)
class Guide:
    """weight: of the reward, whose exponential tilts the density of the samples; below: the level from which on.

    rewarding: of a state, its levels and the number of rows; `of_reward` reads the denoiser's own features.
    """

    rewarding: Rewarding
    weight: float
    below: float = 0.95
    clear: Callable[[], None] = lambda: None  # called before the denoiser sees a state

    def velocity(self, step: Step, state: Tensor) -> Tensor:
        """v [R, ...] of a step, steered; `state`: the leaf that the step's own state was made of."""
        level = highest(step.s)
        rewards = self.rewarding(state, torch.full((len(state),), level), len(state))
        gradient = torch.autograd.grad(rewards.sum(), state, allow_unused=True)[0]
        if gradient is None:
            raise PolicyError("sampler.guide: no gradient of the latent reward reaches the latents of this pipeline")
        at = coordinates(step.path, level if step.path != "exploding" else level / (1 + level))
        return guided_velocity(
            step.v.detach(), gradient.float(), at.level, weight=self.weight, signal=at.signal, unit=at.unit
        )


def of_reward(reward: LatentReward, features: Features) -> Rewarding:
    """The reward of what the denoiser has made of a state since the last step.

    Raises PolicyError where that is of another width than the reward was fitted to.
    """

    def rewarding(x: Tensor, level: Tensor, rows: int) -> Tensor:
        found = features.take(rows)
        if found.shape[1] != reward.width:
            raise PolicyError(
                f"sampler.guide: the reward reads {reward.width} features of a state, this call of the pipeline has "
                f"{found.shape[1]}: fit it with the same model and guidance (`flowrl train-latent-reward`)"
            )
        return reward.to(found.device)(found, level.to(found.device))

    return rewarding


def guide_of(
    reward: LatentReward, card: dict[str, JSON], modules: dict[str, nn.Module], weight: float, below: float
) -> Guide:
    """The guide by a reward that is loaded (`latent_reward.load`), over the denoisers that it was fitted to."""
    features = Features(modules, card["blocks"])
    return Guide(of_reward(reward, features), weight, below, features.clear)


class GuidedWalk:
    """The walk of a rollout, each of whose steps is given the steered velocity.

    A state that a step returns is a leaf, through which the gradient of the next step's features ends: the graph of one
    step is held at a time. The first step, whose state the pipeline makes, is not steered, as the formula has it.
    """

    def __init__(self, walk: RolloutWalk, guide: Guide):
        self.walk, self.guide = walk, guide
        self._leaf: dict[int, Tensor] = {}

    @property
    def rows(self) -> int:
        """Rows of the pass."""
        return self.walk.rows

    @property
    def table(self) -> Table:
        """See `RolloutWalk`."""
        return self.walk.table

    def leads(self) -> list[tuple[int, int]]:
        """See `RolloutWalk`."""
        return self.walk.leads()

    def is_real(self, iteration: int) -> bool:
        """See `RolloutWalk`."""
        return self.walk.is_real(iteration)

    def skipped_state(self, iteration: int, stream: int) -> Tensor:
        """See `RolloutWalk`."""
        return self.walk.skipped_state(iteration, stream)

    def step(self, step: Step) -> Tensor:
        """The next states [R, ...], by the steered velocity; raises PolicyError for several latents at once."""
        if step.stream:
            raise PolicyError("sampler.guide: this pipeline steps several latents at once; accepted: one; remove it")
        plain = replace(step, x=step.x.detach(), v=step.v.detach())
        leaf = self._leaf.pop(0, None)
        if leaf is not None:
            plain = replace(plain, v=self.guide.velocity(step, leaf))
        state = self.walk.step(plain).detach()
        self.guide.clear()
        last = self.walk.table.num_steps(self.walk.tree.num_steps) - 1
        steers = step.index < last and 0 < highest(step.s_next) <= self._below(step)
        torch.set_grad_enabled(steers)  # until the pass ends, which restores it: no decoder needs a graph
        if not steers:
            return state
        self._leaf[0] = state.clone().requires_grad_()
        return self._leaf[0]

    def _below(self, step: Step) -> float:
        below = self.guide.below
        return below / (1 - below) if step.path == "exploding" else below
