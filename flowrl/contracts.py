"""The few types that every part of flowrl meets in: prompts, samples, rollouts, and the protocols around them.

Shapes, here and everywhere: R rows (trainable chains), K decisions a row (denoising steps or tokens), B finished
samples, P prompts, G samples a prompt. A decision is a number to the core: a log-probability, a mask, an advantage.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """What one group of samples is drawn for.

    `meta` is the reward's ground truth, `media` paths of inputs, `call` the pipeline's arguments, Paths for files.
    """

    id: str
    text: str
    media: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Samples:
    """Finished samples, the only thing a reward sees.

    prompts has length B; group int64 [B] says which samples were drawn for the same prompt. One of images float
    [B, 3, H, W] in [0, 1], video float [B, T, 3, H, W] in [0, 1], audio float [B, C, T] with full scale at -1 and 1 or
    texts (length B) is given; audio may also go along with a video. sample_rate: samples of audio a second. Where
    decisions are drawn until one of them ends the sample: lengths int64 [B], how many were drawn, and truncated bool
    [B], whether their limit ended it instead.
    """

    prompts: Sequence[Prompt]
    group: Tensor
    images: Tensor | None = None
    video: Tensor | None = None
    texts: Sequence[str] | None = None
    lengths: Tensor | None = None
    truncated: Tensor | None = None
    audio: Tensor | None = None
    sample_rate: int | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: Sequence[int]) -> "Samples":
        """The samples at these positions, as a Samples."""
        at = torch.as_tensor(list(index), dtype=torch.int64)
        return Samples(
            prompts=[self.prompts[i] for i in index],
            group=self.group[at],
            images=_at(self.images, at),
            video=_at(self.video, at),
            audio=_at(self.audio, at),
            sample_rate=self.sample_rate,
            texts=None if self.texts is None else [self.texts[i] for i in index],
            lengths=_at(self.lengths, at),
            truncated=_at(self.truncated, at),
        )


def _at(values: Tensor | None, index: Tensor) -> Tensor | None:
    return None if values is None else values[index.to(values.device)]


@dataclass(frozen=True)
class Credit:
    """How the rewards of samples reach rows, where rows are not samples. P prompts have r rows and l samples each.

    weights float32 [P or 1, V, r, l]: row i takes in view v the sum of weights[:, v, i] times the rewards of its
    prompt's samples; the advantages of the V views add up. peers int64 [r]: rows of a prompt with equal numbers are
    compared. by_row False: samples are compared within their prompt, and rows take the weighted sum of the advantages.
    """

    weights: Tensor
    peers: Tensor
    by_row: bool = True


@dataclass
class Rollout:
    """Samples and all that training on them needs.

    rollout_logp float32 [R, K]: log-probabilities under the policy that sampled. mask bool [R, K]: decisions that are
    trained. replay: what the policy stored for itself, opaque to everybody else. reference float32 [R, K]: log-probs
    under the reference policy, once core/backward.py has filled them in. credit: how the samples' rewards reach the
    rows; None where row i is sample i. step_stats: further numbers of each decision, float32 [R, K], by name, where the
    policy has any: of a denoising step `std`, its standard deviation, and `dt` < 0, its length in noise level; of a
    token `entropy`, in nats, of the distribution that it is scored under.
    """

    samples: Samples
    rollout_logp: Tensor
    mask: Tensor
    replay: Any
    reference: Tensor | None = None
    credit: Credit | None = None
    step_stats: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LogProbs:
    """How likely some decisions are under the weights of a `View`: rows int64 [r], columns int64 [k], logp [r, k].

    kl [r, k]: the exact divergence from the reference, where the view asks for it. centred [r, k], where it asks for
    it: mean over elements of (mean - mean of the rollout) / std * z, where z is the noise that the rollout drew. It is
    the log-ratio to the policy that sampled, less its expectation. All with gradient under the current weights.
    """

    rows: Tensor
    columns: Tensor
    logp: Tensor
    kl: Tensor | None = None
    centred: Tensor | None = None


@dataclass(frozen=True)
class Field:
    """Velocities of a model at states that lead to finished samples, under the weights of a `View`.

    rows int64 [r], columns int64 [1]. level: of the noise, that of the column. x [r, ...]: the states; v, like x: the
    model's velocity dx/ds there, with gradient under the current weights; x0: the samples; target: the velocity that
    leads back to them. unit: what x - level * v is divided by to give an estimate of x0, 1 on the path of a flow.

    Of a walked state, the step that begins there leads to carry * x + gain * v; of an injected one, whose step leads to
    the level `to`, gain is the derivative of `recovered` by v. Both can `show` states of these rows, with gradient.
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

    @property
    def recovered(self) -> Tensor:
        """x0 [r, ...] with what the model's velocity changes in it."""
        return self.x0 + self.gain * (self.v - self.target)

    def clean(self, v: Tensor) -> Tensor:
        """The estimate of x0 that a velocity at x stands for, [r, ...]."""
        return (self.x - self.level * v) / self.unit


class Finished(NamedTuple):
    """Finished samples: rows int64 [r], their last states x0 [r, ...], and `show`, as that of a Field."""

    rows: Tensor
    x0: Tensor
    show: "Show"


Visit = Callable[[Any], None]  # is given LogProbs, a Field or Finished, by the states of the view
Show = Callable[[Tensor], Samples]  # decodes states [r, ...], with gradient
RewardOf = Callable[[Samples, Sequence[str] | None], Tensor]  # [B] of samples, with these texts as prompts
Weights = Literal["current", "reference", "old"]
States = Literal["drawn", "noised", "walked", "injected", "finished"]


@dataclass(frozen=True)
class View:
    """What an objective wants to see of a rollout.

    states: drawn, the decisions of the rollout, as LogProbs; finished, its samples, as Finished; or a Field a column:
    noised, samples at the plan's levels, with noise of a row or of its prompt (share_noise), injected, samples with
    the noise that they came from, or walked, states that led to them, last first (nested: x takes a gradient).
    weights: current, those that learn, with gradient unless `torch.no_grad` is on; without gradient, reference, those
    that a divergence is measured from, or old, an older copy of the current ones. The last two are of drawn states
    alone. exact_kl: `LogProbs.kl`, which takes an earlier look at the same rows under the reference that asks for it
    too, so that the policy keeps what it compares with. centred: `LogProbs.centred`.
    """

    states: States = "drawn"
    share_noise: bool = False
    nested: bool = False
    weights: Weights = "current"
    exact_kl: bool = False
    centred: bool = False


PlanT = TypeVar("PlanT", contravariant=True)  # what a policy's rollouts go by, its own affair
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


class Reward(Protocol):
    """Scores samples: float32 [B]. NaN marks "could not be scored"; an error is never turned into a number."""

    def __call__(self, samples: Samples) -> Tensor:
        """The scores, one a sample."""
        ...


@dataclass(frozen=True)
class Batch:
    """The data of what is looked at, cut as it is: r rows, k decisions of each.

    rollout_logp float32 [r, k]: log-probs under the policy that sampled. adv float32 [r], or [r, k] where decisions of
    a row differ: what moves them. mask bool [r, k]: which are trained. reference float32 [r, k]: log-probs under the
    reference, where the objective needs it. step_stats: [r, k] by name, see `Rollout`. velocities: of a Field, those of
    the other weights that the objective needs at the same states, like its v, by name. together int64 [r]: equal for
    rows that the objective takes together; of a pair the better one comes first. pull, like v of a Field: the gradient
    of the loss at what its step leads to. reward_of: the weighted reward of samples, with gradient.
    """

    rollout_logp: Tensor
    adv: Tensor
    mask: Tensor
    reference: Tensor | None = None
    step_stats: dict[str, Tensor] = field(default_factory=dict)
    velocities: Mapping[str, Tensor] = field(default_factory=dict)
    together: Tensor | None = None
    pull: Tensor | None = None
    reward_of: RewardOf | None = None


Together = Literal["decision", "row", "pair", "group"]
Need = Literal["reference", "old", "pull", "reward_of"]


class Objective(Protocol):
    """A loss per decision, what it needs to be computed, and how the loop is to average it."""

    @property
    def view(self) -> View:
        """What it looks at."""
        ...

    @property
    def together(self) -> Together:
        """What must not be cut: the loss of a decision reads that decision alone, or others of its row too; of noised
        states, the other row of its pair, or those of its group, in the same column."""
        ...

    @property
    def needs(self) -> frozenset[Need]:
        """What the loop has to provide. reference: `Batch.reference`, as every trained decision pays a divergence; of
        noised states the velocities of the reference, and with old those of the older copy, in `Batch.velocities`;
        reward_of, pull: see `Batch`, and for a pull core/backward_pull.py."""
        ...

    def weights(self, mask: Tensor) -> Tensor:
        """Weight of every decision in the loss, float32 [R, K], from the mask [R, K] of all rows of an update."""
        ...

    def step_weights(self, mask: Tensor, step_stats: dict[str, Tensor]) -> Tensor | None:
        """Factor of every decision's advantage, float32 [R, K], from mask and step_stats [R, K] of all rows.

        Rows: of an update. None: all are 1. It acts on the policy gradient and leaves a divergence alone. Raises
        ValueError where a statistic that it needs is not there.
        """
        ...

    def __call__(self, seen: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss [r, k] float32, metrics: name -> [r, k] values, averaged over decisions; see clipped.py)."""
        ...
