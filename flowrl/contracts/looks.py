"""Policies and what they show of their rollouts: log-probabilities, velocities, finished samples."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from flowrl.contracts.samples import Prompt, Rollout, Samples


@dataclass(frozen=True)
class LogProbs:
    """How likely some decisions are under the weights of a `View`: rows int64 [r], columns int64 [k], logp [r, k].

    kl [r, k]: the exact divergence from the reference, where the view asks for it. centred [r, k], where it asks for
    it: mean over elements of (mean - mean of the rollout) / std * z, where z is the noise that the rollout drew. It is
    the log-ratio to the policy that sampled, less its expectation. entropy [r, k], where it asks for it: of the
    decisions' distributions, in nats. All with gradient under the current weights.
    """

    rows: Tensor
    columns: Tensor
    logp: Tensor
    kl: Tensor | None = None
    centred: Tensor | None = None
    entropy: Tensor | None = None


@dataclass(frozen=True)
class Field:
    """Velocities of a model at states that lead to finished samples, under the weights of a `View`.

    rows int64 [r], columns int64 [1]. level: of the noise, that of the column. x [r, ...]: the states; v, like x: the
    model's velocity dx/ds there, with gradient under the current weights; x0: the samples; target: the velocity that
    leads back to them. unit: what x - level * v is divided by to give an estimate of x0, 1 on the path of a flow.

    Of a walked state, the step that begins there leads to carry * x + gain * v (where it stands for others too, gain is
    as much larger), and `through` is the share of a gradient that goes on through v to x; of an injected one, whose
    step leads to the level `to`, gain is the derivative of `recovered` by v. All of them can `show` states of these
    rows, with gradient.

    share [r]: the part of a row's elements that is at this level, where a pipeline overwrites the others or holds them
    as a condition: x, v, x0 and target are 0 there. None: all of them.
    """

    rows: Tensor
    columns: Tensor
    level: float
    x: Tensor
    v: Tensor
    x0: Tensor
    target: Tensor
    unit: float = 1.0
    carry: float = 1.0
    gain: float = 0.0
    to: float = 0.0
    show: "Show | None" = None
    signal: float = 1.0  # the share of x0 in x: an error of v is unit / signal times that of the noise
    share: Tensor | None = None
    through: float = 1.0

    @property
    def recovered(self) -> Tensor:
        """x0 [r, ...] with what the model's velocity changes in it."""
        return self.x0 + self.gain * (self.v - self.target)

    def clean(self, v: Tensor) -> Tensor:
        """The estimate of x0 that a velocity at x stands for, [r, ...]."""
        return (self.x - self.level * v) / self.unit


@dataclass(frozen=True)
class Valued:
    """What a critic expects of the rows from each decision on: rows int64 [r], columns int64 [k], value [r, k]."""

    rows: Tensor
    columns: Tensor
    value: Tensor


class Finished(NamedTuple):
    """Finished samples: rows int64 [r], their last states x0 [r, ...], and `show`, as that of a Field.

    Where a plan has rewards judge an estimate of x0 made on the way, x0 is that. unit: that of a Field at its level.
    """

    rows: Tensor
    x0: Tensor
    show: "Show"
    unit: float = 1.0


Visit = Callable[[Any], None]  # is given LogProbs, a Field, Finished or Valued, by the states of the view
Show = Callable[[Tensor], Samples]  # decodes states [r, ...], with gradient
RewardOf = Callable[[Samples, Sequence[str] | None], Tensor]  # [B] of samples, with these texts as prompts
Weights = Literal["current", "reference", "old"]
Divergence = Literal["exact", "forward", "jsd"]
States = Literal["drawn", "noised", "walked", "injected", "finished", "valued"]


@dataclass(frozen=True)
class View:
    """What an objective wants to see of a rollout.

    states: drawn, the decisions of the rollout, as LogProbs; valued, of a critic, the same as Valued; finished, its
    samples, as Finished; or a Field a column:
    noised, samples at the plan's levels, with noise of a row, of its prompt (share_noise) or that which the sample came
    from (own_noise), injected, samples with that one and a step to another level, or walked, states that led to them,
    last first (nested: x takes a gradient).
    weights: current, those that learn, with gradient unless `torch.no_grad` is on; without gradient, reference, those
    that a divergence is measured from, or old, an older copy of the current ones. The last two are of drawn states
    alone. exact_kl: `LogProbs.kl`, which takes an earlier look at the same rows under the reference that asks for it
    too, so that the policy keeps what it compares with. kl_kind: which divergence that is of, policy p and reference q:
    exact, KL(p || q); forward, KL(q || p); jsd, kl_mix KL(q || m) + (1 - kl_mix) KL(p || m) with m = kl_mix q + (1 -
    kl_mix) p. centred: `LogProbs.centred`. entropy: `LogProbs.entropy`. shown: of drawn states, beside the
    pictures that the policy has for a second look at its rows, in place of those that they are trained with.
    """

    states: States = "drawn"
    share_noise: bool = False
    own_noise: bool = False
    nested: bool = False
    weights: Weights = "current"
    exact_kl: bool = False
    centred: bool = False
    entropy: bool = False
    kl_kind: Divergence = "exact"
    kl_mix: float = 0.5
    shown: bool = False


PlanT = TypeVar("PlanT", contravariant=True)  # what a policy's rollouts go by, its own affair
# of prompts that are about to be drawn: those that will be drawn next, the soonest first
Coming = Callable[[Sequence[Prompt]], Iterable[Prompt]]
Progress = Callable[[int], None]  # is told how many rows or tokens went through the model since it was last called


class Looks(Protocol):
    """Something that can say again how likely the decisions of a rollout were, with gradient."""

    @property
    def whole_rows(self) -> bool:
        """Whether `look` hands over all trained decisions of a row in one block."""
        ...

    def look(
        self, rollout: Rollout, rows: Tensor, view: View, visit: Visit, *, progress: Progress | None = None
    ) -> None:
        """Hands what the view asks for of the trained decisions of `rows` to `visit`, block by block.

        `visit` may call backward on what it is given; the graph of a block is dropped when it returns. Under
        `torch.no_grad` the same numbers come without a graph.
        """
        ...


class Policy(Looks, Protocol[PlanT]):
    """Something that samples, and can look at what it drew.

    source: the model as it was loaded, which writes itself. modules: by name, those that are trained. weights: gives
    the context within which the modules have other weights, by their name in a `View`.
    """

    source: Any
    modules: dict[str, torch.nn.Module]
    device: torch.device
    weights: Callable[[str], AbstractContextManager[None]]

    def prepare(self, prompt: Prompt, plan: PlanT) -> None:
        """Proves, once, that a look is what its rollout was. The first rollout does it where nobody did before."""
        ...

    def rollout(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        plan: PlanT,
        seed: int,
        first: int = 0,
        progress: Progress | None = None,
        finished: Callable[[Samples], None] | None = None,
    ) -> Rollout:
        """Draws `group_size` samples for each prompt, prompt by prompt.

        Sample i of a prompt takes its noise from (seed, prompt id, first + i, step), whatever the batch. A prompt that
        comes again among these draws other samples. finished: given the samples of some of the prompts, in order, as
        soon as they are there, by a policy that has them before the others.
        """
        ...

    def trainable(self) -> Iterator[torch.nn.Parameter]:
        """The parameters that learn."""
        ...
