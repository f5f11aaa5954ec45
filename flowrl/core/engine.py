"""Draws groups of samples and has them scored: one call with one owner, in this process.

Where groups are drawn by several processes, what gives `draw` of the same prompts and numbers takes its place.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from flowrl.contracts import Drawing, Explore, Policy, Progress, Prompt, Rollout, Samples
from flowrl.core.selection import moved_rows, row_advantage

PlanT = TypeVar("PlanT")
GivenPlanT = TypeVar("GivenPlanT", contravariant=True)
Metrics = dict[str, float]
# of rewards [B] and the rollout: advantages of its rows, [R], or of their decisions, [R, K], and metrics
Advantage = Callable[[dict[str, Tensor], Rollout], tuple[Tensor, Metrics]]


@dataclass(frozen=True)
class Draw:
    """A rollout, its rewards [B], and the advantages, [R] or [R, K], and metrics that they give.

    Raises ValueError for advantages of another shape.
    """

    rollout: Rollout
    rewards: dict[str, Tensor]
    adv: Tensor
    metrics: Metrics

    def __post_init__(self) -> None:
        decisions = self.rollout.rollout_logp.shape
        if self.adv.shape not in (decisions[:1], decisions):
            rows, columns = decisions
            raise ValueError(
                f"the advantage is of shape {list(self.adv.shape)}; accepted: [{rows}], one a row, or [{rows}, "
                f"{columns}], one a decision"
            )

    @property
    def num_prompts(self) -> int:
        """Prompts of the rollout; rows and samples lie prompt by prompt, the same number for each."""
        return len(self.rollout.samples.group.unique())

    def kept_prompts(self, ended: bool = False) -> Tensor:
        """Positions, int64 [p], of the prompts of which some trained decision has an advantage.

        ended: conversations that a limit ended are not asked: the others of a prompt have to differ among each other
        (Mini-o3, arXiv:2509.07969, its code).
        """
        moved, cut = moved_rows(self.adv, self.rollout.mask), self.rollout.samples.truncated
        if ended and cut is not None and self.rollout.samples.talks is not None:
            values = row_advantage(self.adv, self.rollout.mask).cpu().unflatten(0, (self.num_prompts, -1))
            out = cut.cpu().unflatten(0, (self.num_prompts, -1))
            spread = values.masked_fill(out, -torch.inf).amax(1) - values.masked_fill(out, torch.inf).amin(1)
            return (spread > 0).nonzero()[:, 0]
        return moved.unflatten(0, (self.num_prompts, -1)).any(1).nonzero()[:, 0]


class Drawn(NamedTuple):
    """A rollout, its rewards [B], and metrics of how it came about; adv [R], where its samples came with it; at: see
    `Explored`."""

    rollout: Rollout
    rewards: dict[str, Tensor]
    told: Metrics
    adv: Tensor | None = None
    at: Sequence[int] | None = None


@dataclass
class Clock:
    """Seconds spent by phase; `enter` is told the name of a phase as it begins."""

    enter: Callable[[str], None] = lambda name: None
    seconds: dict[str, float] = field(default_factory=dict)
    _last: str = ""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times what is done within. A phase that follows on itself is one."""
        if name != self._last:
            self.enter(name)
            self._last = name
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass
class LocalEngine(Generic[PlanT]):
    """Draws `group` samples of each prompt by `plan`, scores them, and has their advantages worked out.

    score gives every reward [B] by name. progress, finished: see `Policy.rollout`. sampling: the policy draws within
    what it gives, which chooses the weights. baseline: a plan that draws one further sample of each prompt, the
    likeliest, whose rewards are `Rollout.baseline`. explore: draws the samples in the place of a plain rollout;
    together: it waits for other ranks, and is given all prompts with the positions of this rank's. fill: adds to a
    rollout what advantages read beside rewards.
    """

    policy: Policy[PlanT]
    plan: PlanT
    seed: int
    group: int
    score: Callable[[Samples], dict[str, Tensor]]
    advantage: Advantage
    clock: Clock
    progress: Progress | None = None
    finished: Callable[[Samples], None] | None = None
    sampling: Callable[[], AbstractContextManager[None]] = nullcontext
    baseline: PlanT | None = None
    explore: Explore | None = None
    fill: Callable[[Rollout], None] | None = None
    together: bool = False

    def draw(self, prompts: Sequence[Prompt], first: int, group: int | None = None) -> Draw:
        """The groups of these prompts, whose samples take the numbers of noise from `first` on. group: their size,
        where it is another."""
        drawn = self.drawn(prompts, first, group)
        assert drawn is not None  # one process draws something
        with self.clock.phase("score"):
            adv, metrics = self.advantage(drawn.rewards, drawn.rollout)
        return Draw(drawn.rollout, drawn.rewards, adv, metrics | drawn.told)

    def drawn(
        self, prompts: Sequence[Prompt], first: int, group: int | None = None, own: Sequence[int] | None = None
    ) -> Drawn | None:
        """As `draw`, before there are advantages. own: positions of the prompts that are drawn here (None: all).

        None where ranks draw `together`, and this one has nothing."""
        everyone, prompts = prompts, prompts if own is None else [prompts[i] for i in own]
        rewards, told, at = None, dict[str, float](), None
        with self.clock.phase("rollout"), self.sampling():
            if self.explore is None:
                rollout = self.roll(prompts, group or self.group, first)
            else:
                of = (everyone, own) if self.together else (prompts, None)
                what = Drawing(of[0], group or self.group, self.plan, self.seed, first, self.progress, of[1])
                found = self.explore(self.policy, what, self.score)
                if found is None:
                    return None
                rollout, rewards, told, at = found
            greedy = None if self.baseline is None else self._greedy(prompts, self.baseline, first)
        if self.fill is not None:
            with self.clock.phase("values"):
                self.fill(rollout)
        with self.clock.phase("score"):
            rewards = self.score(rollout.samples) if rewards is None else rewards
            if greedy is not None:
                scores = self.score(greedy.samples)
                if rewards.keys() - scores.keys():
                    alone = sorted(rewards.keys() - scores.keys())[0]
                    raise ValueError(
                        f"reward {alone!r} compares the samples of a group, so that the baseline's sample, which is "
                        "alone, has none: set another advantage.baseline"
                    )
                rollout.baseline = {
                    name: value.repeat_interleave(group or self.group) for name, value in scores.items()
                }
        return Drawn(rollout, rewards, told, at=at)

    def roll(self, prompts: Sequence[Prompt], number: int, first: int) -> Rollout:
        """The rollout of so many samples of each of these prompts, under the weights of now."""
        return self.policy.rollout(
            prompts,
            group_size=number,
            plan=self.plan,
            seed=self.seed,
            first=first,
            progress=self.progress,
            finished=self.finished,
        )

    def _greedy(self, prompts: Sequence[Prompt], plan: PlanT, first: int) -> Rollout:
        """One sample of each prompt by a plan of its own."""
        given: dict[str, Any] = {"plan": plan, "seed": self.seed, "first": first, "progress": self.progress}
        return self.policy.rollout(prompts, group_size=1, **given)


class TakesSamples(Protocol[GivenPlanT]):
    """A policy that can take samples which it did not draw."""

    def given(
        self,
        prompts: Sequence[Prompt],
        pictures: Sequence[Sequence[Any]],
        *,
        plan: GivenPlanT,
        seed: int,
        first: int = 0,
        drawn: Sequence[tuple[Sequence[int], Rollout]] = (),
        noise: Sequence[Sequence[Tensor]] = (),
        shown: Sequence[Sequence[Any]] = (),
    ) -> Rollout:
        """A rollout of the pictures of each prompt, each scaled and cut to the size of the policy's own: float
        [3, H, W], or video [T, 3, H, W], in [0, 1]; or of its texts.

        drawn: rollouts by this plan and seed of some of the prompts, with their positions; their samples stand behind
        the prompt's own, so that each prompt has as many. The noise of all is that of samples that are drawn under the
        same seed and numbers. With drawn ones, step_stats has `given` [R, K], 1 of samples that were not drawn. noise:
        that which each picture came from, like the states of the policy's own walk, where the plan keeps it. shown: the
        view of each text's prompt, the policy's own affair, None for the pictures as they are.
        """
        ...


class FromFiles(NamedTuple):
    """The samples of a prompt as in `TakesSamples.given`, a score of each, and the noise, or the view, of each where it
    is asked."""

    samples: Sequence[Any]
    scores: Sequence[float]
    noise: Sequence[Tensor] = ()
    shown: Sequence[Any] = ()


SamplesOf = Callable[[Prompt], FromFiles]


@dataclass
class GivenEngine(Generic[PlanT]):
    """Takes the samples of each prompt as they are, with their scores as advantages, in the place of drawing any."""

    policy: TakesSamples[PlanT]
    plan: PlanT
    seed: int
    samples_of: SamplesOf
    clock: Clock

    def draw(self, prompts: Sequence[Prompt], first: int) -> Draw:
        """The samples of these prompts, which are noised by the numbers from `first` on."""
        drawn = self.drawn(prompts, first)
        assert drawn.adv is not None
        return Draw(drawn.rollout, {}, drawn.adv, {})

    def drawn(
        self, prompts: Sequence[Prompt], first: int, group: int | None = None, own: Sequence[int] | None = None
    ) -> Drawn:
        """As `draw`; the samples of a prompt are those that there are, whatever the group. own: see `LocalEngine`."""
        prompts = prompts if own is None else [prompts[i] for i in own]
        with self.clock.phase("rollout"):
            given = [self.samples_of(prompt) for prompt in prompts]
            pictures, noise = [one.samples for one in given], [one.noise for one in given]
            how: dict[str, Any] = {"noise": noise} if any(noise) else {}
            how |= {"shown": shown} if any(shown := [one.shown for one in given]) else {}
            rollout = self.policy.given(prompts, pictures, plan=self.plan, seed=self.seed, first=first, **how)
            return Drawn(rollout, {}, {}, torch.tensor([score for one in given for score in one.scores]))


@dataclass
class MixedEngine(Generic[PlanT]):
    """Lets the groups of some prompts begin with the samples that these come with, and draws the rest.

    share: the part of the prompts of a draw for which this happens, in [0, 1]; which they are is drawn anew each time,
    `block` prompts that stand beside each other together. All samples are scored: the scores of files are not read.
    """

    local: LocalEngine[PlanT]
    policy: TakesSamples[PlanT]
    samples_of: SamplesOf
    share: float
    block: int = 1

    def draw(self, prompts: Sequence[Prompt], first: int) -> Draw:
        """The groups of these prompts. Raises ValueError where the samples of a prompt are a whole group."""
        drawn = self.drawn(prompts, first)
        with self.local.clock.phase("score"):
            adv, metrics = self.local.advantage(drawn.rewards, drawn.rollout)
        return Draw(drawn.rollout, drawn.rewards, adv, metrics | drawn.told)

    def drawn(
        self, prompts: Sequence[Prompt], first: int, group: int | None = None, own: Sequence[int] | None = None
    ) -> Drawn:
        """As `draw`, before there are advantages; own: see `LocalEngine`. The choice is of all prompts."""
        local = self.local
        with local.clock.phase("rollout"), local.sampling():
            chosen = chosen_blocks(len(prompts), self.share, self.block, f"{local.seed}/source/{first}")
            told = {"given": len(chosen) / len(prompts)}
            here = range(len(prompts)) if own is None else own
            given = [self.samples_of(prompts[i]) if i in chosen else FromFiles((), ()) for i in here]
            prompts = [prompts[i] for i in here]
            pictures, noise = [one.samples for one in given], [one.noise for one in given]
            drawn, group = [], group or local.group
            for number in sorted({len(samples) for samples in pictures}):
                if number >= group:
                    raise ValueError(f"a prompt comes with {number} samples: set train.group={number + 1} or more")
                at = [i for i, samples in enumerate(pictures) if len(samples) == number]
                drawn.append((at, local.roll([prompts[i] for i in at], group - number, first)))
            how: dict[str, Any] = {"plan": local.plan, "seed": local.seed, "first": first}
            how |= {"noise": noise} if any(noise) else {}
            rollout = self.policy.given(prompts, pictures, drawn=drawn, **how)
        with local.clock.phase("score"):
            return Drawn(rollout, local.score(rollout.samples), told)


def chosen_blocks(number: int, share: float, block: int, seed: str) -> set[int]:
    """Positions of about share * number prompts, drawn by the seed, `block` that stand beside each other together.

    Where the share is no whole number of blocks, the next larger number is as likely as it is near. Pair-GRPO's code
    (FocusDiff) draws once for both prompts of a pair.
    """
    rng, blocks = random.Random(seed), -(-number // block)
    count = min(math.floor(share * blocks + rng.random()), blocks)
    return {i for b in rng.sample(range(blocks), count) for i in range(b * block, min((b + 1) * block, number))}
