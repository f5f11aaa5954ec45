"""Dynamic sampling (DAPO, arXiv:2503.14476, section 3.2): groups that say nothing are left out, others drawn instead.

The rollouts of several draws are joined without a look into them: `Rollout.replay` of the joined one is the list of its
pieces, and `JoinedPolicy` hands each piece back to the policy that drew it.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.contracts import Credit, Field, LogProbs, Looks, Progress, Rollout, Samples, Valued, View, Visit
from flowrl.core.engine import Advantage, Draw


def kept_groups(draws: Sequence[Draw], ended: bool = False) -> int:
    """How many groups have an advantage; ended: see `Draw.kept_prompts`."""
    return sum(len(draw.kept_prompts(ended)) for draw in draws)


def whole_draw(draws: Sequence[Draw], advantage: Advantage, ended: bool = False) -> Draw:
    """The draws as one, for metrics, which are of all that was drawn; its rollout is for `JoinedPolicy`."""
    whole = _draw_of([(draw, torch.arange(draw.num_prompts)) for draw in draws], advantage)
    drawn = sum(draw.num_prompts for draw in draws)
    counts = {"groups/drawn": float(drawn), "groups/kept": float(kept_groups(draws, ended))}
    told = draws[0].metrics.keys() - whole.metrics.keys()  # by what drew them
    means = {name: sum(draw.metrics[name] * draw.num_prompts for draw in draws) / drawn for name in sorted(told)}
    return replace(whole, metrics=whole.metrics | counts | means)


def kept_draw(draws: Sequence[Draw], advantage: Advantage, ended: bool = False, most: int | None = None) -> Draw:
    """The kept rows of the draws as one for `JoinedPolicy`, with their advantages among each other.

    most: of so many groups, the first (None: all).
    """
    parts, room = [], kept_groups(draws, ended) if most is None else most
    for draw in draws:
        kept = draw.kept_prompts(ended)[:room]
        room -= len(kept)
        parts += [(draw, kept)] if len(kept) else []
    return _draw_of(parts, advantage)


def _draw_of(parts: Sequence[tuple[Draw, Tensor]], advantage: Advantage) -> Draw:
    """These prompts, by position int64, of each draw as one."""
    rollout = join_rollouts([draw.rollout for draw, _ in parts], [prompts for _, prompts in parts])
    rewards = {
        name: torch.cat([draw.rewards[name][of_prompts(p, draw.rollout, "samples")] for draw, p in parts])
        for name in parts[0][0].rewards
    }
    return Draw(rollout, rewards, *advantage(rewards, rollout))


def of_prompts(prompts: Tensor, rollout: Rollout, what: str) -> Tensor:
    """Positions of the rows or samples of these prompts."""
    number = len(rollout.samples.group.unique())
    each = len(rollout.samples if what == "samples" else rollout.rollout_logp) // number
    return (prompts[:, None] * each + torch.arange(each)).flatten()


def _credit(parts: Sequence[tuple[Rollout, Tensor]]) -> Credit | None:
    """The credit of these prompts of each rollout; all of them walked the same tree."""
    first = parts[0][0].credit
    if first is None:
        return None
    weights = [r.credit.weights for r, _ in parts if r.credit is not None]
    if all(len(w) == 1 for w in weights):
        return first
    return replace(first, weights=torch.cat([w[prompts] for w, (_, prompts) in zip(weights, parts, strict=True)]))


@dataclass(frozen=True)
class Piece:
    """Some rows of a rollout, which stand in the joined one from `start` on."""

    rollout: Rollout
    rows: Tensor
    start: int


def join_rollouts(rollouts: Sequence[Rollout], prompts: Sequence[Tensor]) -> Rollout:
    """The rows of these prompts, by position int64 [p], of each rollout as one, to be used with `JoinedPolicy`.

    Groups of different rollouts stay apart. Columns that a rollout does not have are masked.
    """
    rows = [of_prompts(p, r, "rows") for p, r in zip(prompts, rollouts, strict=True)]
    starts = itertools.accumulate((len(part) for part in rows), initial=0)
    pieces = [Piece(*piece) for piece in zip(rollouts, rows, starts, strict=False)]
    width = max(r.rollout_logp.shape[1] for r in rollouts)

    def stacked(values: Callable[[Rollout], Any]) -> Tensor:
        parts = [values(p.rollout)[p.rows] for p in pieces]
        return torch.cat([nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])

    samples = join_samples(
        [r.samples[of_prompts(p, r, "samples").tolist()] for p, r in zip(prompts, rollouts, strict=True)]
    )
    return Rollout(
        samples,
        stacked(lambda r: r.rollout_logp),
        stacked(lambda r: r.mask),
        pieces,
        reference=stacked(lambda r: r.reference) if all(r.reference is not None for r in rollouts) else None,
        value=stacked(lambda r: r.value) if all(r.value is not None for r in rollouts) else None,
        credit=_credit(list(zip(rollouts, prompts, strict=True))),
        step_stats={name: stacked(lambda r, name=name: r.step_stats[name]) for name in rollouts[0].step_stats},
        roles=_rows_of(pieces, "roles"),
        own=_rows_of(pieces, "own"),
    )


def _rows_of(pieces: Sequence[Piece], name: str) -> Tensor | None:
    """A field of rows, [R], of the joined rollout, where all pieces have it."""
    parts = [getattr(piece.rollout, name) for piece in pieces]
    known = [part[piece.rows] for part, piece in zip(parts, pieces, strict=True) if part is not None]
    return torch.cat(known) if len(known) == len(pieces) else None


def join_samples(parts: Sequence[Samples]) -> Samples:
    """The samples of several draws as one, with groups that stay apart."""
    first, group, above = parts[0], [], 0
    for part in parts:
        group.append(part.group + above)
        above = int(group[-1].max()) + 1
    tensors = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in ("images", "video", "audio", "lengths", "truncated")
        if getattr(first, name) is not None
    }
    texts = None if first.texts is None else [text for part in parts for text in part.texts or ()]
    given = None
    if any(part.given is not None for part in parts):
        given = [text for part in parts for text in part.given or [""] * len(part)]
    return Samples(
        [p for part in parts for p in part.prompts],
        torch.cat(group),
        texts=texts,
        given=given,
        talks=None if first.talks is None else [talk for part in parts for talk in part.talks or ()],
        sample_rate=first.sample_rate,
        steps={name: [of for part in parts for of in part.steps[name]] for name in first.steps},
        contrast={name: torch.cat([part.contrast[name] for part in parts]) for name in first.contrast},
        **tensors,
    )


class JoinedPolicy:
    """What looks at rollouts made by `join_rollouts`, for a policy."""

    def __init__(self, policy: Looks):
        self._policy = policy

    @property
    def whole_rows(self) -> bool:
        """See `contracts.Looks`."""
        return self._policy.whole_rows

    def look(
        self, rollout: Rollout, rows: Tensor, view: View, visit: Visit, *, progress: Progress | None = None
    ) -> None:
        """See `contracts.Looks`."""
        for piece, wanted in _pieces_of(rollout, rows):
            place = torch.full((len(piece.rollout.rollout_logp),), -1)
            place[piece.rows] = torch.arange(len(piece.rows)) + piece.start

            def hand_over(seen: LogProbs | Field | Valued, place: Tensor = place) -> None:
                visit(replace(seen, rows=place[seen.rows]))

            self._policy.look(piece.rollout, wanted, view, hand_over, progress=progress)


def _pieces_of(rollout: Rollout, rows: Tensor) -> Iterator[tuple[Piece, Tensor]]:
    """Each piece that some of the rows belong to, and these rows as its rollout counts them."""
    for piece in rollout.replay:
        local = rows - piece.start
        local = local[(local >= 0) & (local < len(piece.rows))]
        if len(local):
            yield piece, piece.rows[local]
