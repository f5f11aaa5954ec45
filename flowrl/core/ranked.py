"""Groups that several ranks draw, each those of its own prompts, as one rollout that all of them hold.

What a decision needs to be walked again stays where it was drawn, and so do pixels; everything else, some numbers a
decision and a text a sample, is gathered before there are advantages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from flowrl.contracts import (
    Conversation,
    Credit,
    Field,
    LogProbs,
    Looks,
    Progress,
    Prompt,
    Ranks,
    Rollout,
    Samples,
    Valued,
    View,
    Visit,
)
from flowrl.core.engine import Advantage, Clock, Draw, Drawn
from flowrl.core.ranks import shares, weighed_means
from flowrl.core.refill import join_rollouts, of_prompts

PIXELS = ("images", "video", "audio")  # of samples, what stays where it was drawn


def has_pixels(samples: Samples) -> bool:
    """Whether these samples have what stays where it was drawn."""
    return any(getattr(samples, name) is not None for name in PIXELS)


class Draws(Protocol):
    """What draws the groups of prompts in one process."""

    def drawn(
        self, prompts: Sequence[Prompt], first: int, group: int | None = None, own: Sequence[int] | None = None
    ) -> Drawn | None:
        """See `LocalEngine.drawn`."""
        ...


@dataclass
class OwnPart:
    """`replay` of a whole rollout: the one that this rank drew (None: it drew nothing), and where its rows stand.

    rows int64 [r]: of each row of its own, the place in the whole.
    """

    rollout: Rollout | None
    rows: Tensor


@dataclass
class RankedEngine:
    """Draws the groups of prompts together with other ranks; `local` draws those of this one.

    samples: of all that were drawn here so far, with their pixels. settle: is called by all ranks alike once all have
    scored, and may raise. block: prompts beside each other whose samples are compared, which one rank draws. together:
    ranks wait for each other as they draw, so that those without a prompt are asked too.
    """

    local: Draws
    advantage: Advantage
    clock: Clock
    ranks: Ranks
    settle: Callable[[], None] = lambda: None
    block: int = 1
    together: bool = False

    def __post_init__(self) -> None:
        self.samples: list[Samples] = []

    def draw(self, prompts: Sequence[Prompt], first: int, group: int | None = None) -> Draw:
        """The groups of these prompts, equal on every rank but for what the rollout's `replay` holds."""
        mine = shares([prompt.id for prompt in prompts], self.ranks.size, self.block)[self.ranks.rank]
        own = self.local.drawn(prompts, first, group, mine) if mine or self.together else None
        if own is not None:
            self.samples.append(own.rollout.samples)
        with self.clock.phase("score"):
            light = None if own is None else _Light.of(own, mine)
            self.settle()
            whole = _whole([part for part in self.ranks.gather(light) if part is not None], prompts)
            held = OwnPart(own and own.rollout, torch.arange(0) if light is None else light.places())
            rollout = replace(whole.rollout, replay=held, own=_marked(held.rows, len(whole.rollout.rollout_logp)))
            if whole.adv is not None:
                return Draw(rollout, {}, whole.adv, whole.told)
            adv, metrics = self.advantage(whole.rewards, rollout)
        return Draw(rollout, whole.rewards, adv, metrics | whole.told)


def own_rollout(rollout: Rollout) -> Rollout | None:
    """What this rank drew of a whole rollout, with the present mask of its rows; None where it drew nothing."""
    held: OwnPart = rollout.replay
    if held.rollout is None:
        return None
    width = held.rollout.rollout_logp.shape[1]
    return replace(held.rollout, mask=rollout.mask[held.rows][:, :width])


class RankedLooks:
    """What looks at the own rows of rollouts that ranks drew together, for a policy or a critic."""

    def __init__(self, policy: Looks):
        self._policy = policy

    @property
    def whole_rows(self) -> bool:
        """See `contracts.Looks`."""
        return self._policy.whole_rows

    def look(
        self, rollout: Rollout, rows: Tensor, view: View, visit: Visit, *, progress: Progress | None = None
    ) -> None:
        """See `contracts.Looks`; rows: of this rank alone. Raises ValueError for those of others."""
        if not len(rows):
            return
        held: OwnPart = rollout.replay
        place = torch.full((len(rollout.rollout_logp),), -1)
        place[held.rows] = torch.arange(len(held.rows))
        local, own = place[rows], own_rollout(rollout)
        if own is None or (local < 0).any():
            raise ValueError("another rank drew some of these rows: look at the own ones")

        def hand_over(seen: LogProbs | Field | Valued) -> None:
            visit(replace(seen, rows=held.rows[seen.rows]))

        self._policy.look(own, local, view, hand_over, progress=progress)


@dataclass
class _Light:
    """What a rank tells of its groups: all but pixels and what its policy stored.

    at: the positions of its prompts; prompts: these, where they are not those of the draw.
    """

    drawn: Drawn
    at: Sequence[int]
    prompts: Sequence[Prompt] = ()

    @staticmethod
    def of(drawn: Drawn, at: list[int]) -> "_Light":
        samples = drawn.rollout.samples
        none = {"prompts": [Prompt("", "")] * len(samples), **dict.fromkeys(PIXELS)}  # every rank has the prompts
        talks = None if samples.talks is None else [_without_pictures(talk) for talk in samples.talks]
        light = replace(drawn.rollout, samples=replace(samples, talks=talks, **none), replay=None)
        if drawn.at is None:
            return _Light(drawn._replace(rollout=light), at)
        own = dict(zip(samples.group.tolist(), samples.prompts, strict=True))
        return _Light(drawn._replace(rollout=light), drawn.at, [own[i] for i in range(len(drawn.at))])

    def places(self) -> Tensor:
        """Where the rows stand among those of all prompts, int64."""
        return of_prompts(torch.tensor(self.at), self.drawn.rollout, "rows")


def _without_pictures(talk: Conversation) -> Conversation:
    """The conversation without what its tools showed but texts."""
    return replace(talk, shown=tuple(tuple(replace(m, pictures=()) for m in messages) for messages in talk.shown))


def _whole(parts: Sequence[_Light], prompts: Sequence[Prompt]) -> Drawn:
    """What all ranks drew, prompt by prompt in the order of `prompts`; its rollout has nothing to replay."""
    rollouts = [part.drawn.rollout for part in parts]
    joined = join_rollouts(rollouts, [torch.arange(len(part.at)) for part in parts])
    order = torch.tensor([i for part in parts for i in part.at]).argsort()
    if parts[0].prompts:
        told = [prompt for part in parts for prompt in part.prompts]
        prompts = [told[i] for i in order.tolist()]
    rows, at = of_prompts(order, joined, "rows"), of_prompts(order, joined, "samples")
    samples = joined.samples[at.tolist()]
    each = len(at) // len(prompts)
    samples = replace(
        samples,
        prompts=[prompt for prompt in prompts for _ in range(each)],
        group=torch.arange(len(prompts)).repeat_interleave(each),
    )
    of_rows: dict[str, Any] = {
        name: None if (value := getattr(joined, name)) is None else value[rows]
        for name in ("rollout_logp", "mask", "reference", "value", "roles")
    }
    stats = {name: value[rows] for name, value in joined.step_stats.items()}
    baseline = None if rollouts[0].baseline is None else _joined([r.baseline or {} for r in rollouts], at)
    rollout = replace(
        joined,
        samples=samples,
        replay=None,
        step_stats=stats,
        baseline=baseline,
        credit=_credit(joined.credit, order),
        **of_rows,
    )
    adv = None
    if (given := [part.drawn.adv for part in parts if part.drawn.adv is not None]) and len(given) == len(parts):
        adv = torch.cat(given)[rows]
    told = weighed_means([(part.drawn.told, len(part.at)) for part in parts])  # of some, no prompt may have a view
    return Drawn(rollout, _joined([part.drawn.rewards for part in parts], at), told, adv)


def _joined(parts: Sequence[dict[str, Tensor]], at: Tensor) -> dict[str, Tensor]:
    """Numbers of samples by name, those of all ranks in the order of the whole."""
    return {name: torch.cat([part[name] for part in parts])[at] for name in parts[0]}


def _credit(credit: Credit | None, order: Tensor) -> Credit | None:
    """The credit with its prompts in another order."""
    return credit if credit is None or len(credit.weights) == 1 else replace(credit, weights=credit.weights[order])


def _marked(rows: Tensor, number: int) -> Tensor:
    mark = torch.zeros(number, dtype=torch.bool)
    mark[rows] = True
    return mark
