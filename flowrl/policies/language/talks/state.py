"""Conversations as they stand, and as a rollout: texts, turns and ends of their rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import Conversation, Episode, Rollout, Said, Shown
from flowrl.policies.language.drawing.ends import token_ends
from flowrl.policies.language.drawing.rows import Row
from samplers.tokens import Generation


@dataclass
class Talk:
    """A row and its conversation as it stands. spans: where each of the model's turns begins and ends in the row."""

    row: Row
    episode: Episode | None = None
    said: list[Said] = field(default_factory=list)
    shown: list[tuple[Shown, ...]] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    end: str | None = None
    failure: str | None = None
    outcome: Mapping[str, float] = field(default_factory=dict)

    def fail(self, what: str, error: BaseException) -> None:
        """The environment failed: the row has no score."""
        reason = " ".join(str(error).split())
        self.end, self.failure = "failed", f"{what} failed: {type(error).__name__}{f': {reason}' if reason else ''}"

    def record(self) -> Conversation:
        """The conversation as a reward sees it."""
        shown = tuple([*self.shown, *([()] * (len(self.said) - len(self.shown)))])
        return Conversation(tuple(self.said), shown, self.end or "length", self.outcome, self.failure)


def completed(policy: Any, talks: Sequence[Talk], group: Tensor, plan: Generation) -> Rollout:
    """A rollout of these conversations. A text is the model's last turn, a length what it drew in all turns.

    Whose end was not an answer counts as truncated: it ran into a limit, or failed.
    """
    rows = [talk.row for talk in talks]
    for talk in talks:
        talk.row.ended = talk.end == "answer"
    rollout = policy.completed(rows, group, plan)
    samples = replace(
        rollout.samples,
        texts=[talk.said[-1].text for talk in talks],
        lengths=torch.tensor([sum(row.drawn) for row in rows]),
        given=_given(policy, talks),
        talks=[talk.record() for talk in talks],
    )
    stats = rollout.step_stats | {"turn": _turns(talks, rollout.mask.shape[1])}
    if "end" in stats:
        stats["end"] = _ends(policy, talks, rollout.mask.shape[1])
    return replace(rollout, samples=samples, step_stats=stats)


def named_turns(talk: Talk, begin: int, number: int) -> int:
    """Gives the tokens of each turn from `begin` on, and those shown behind it, a `node` of their own; the last one.

    number: the last that was given away.
    """
    ends = [start for start, _ in talk.spans[1:]] + [len(talk.row.ids)]
    for (start, _), end in zip(talk.spans[begin:], ends[begin:], strict=True):
        number += 1
        talk.row.node[start:end] = [number] * (end - start)
    return number


def _given(policy: Any, talks: Sequence[Talk]) -> list[str] | None:
    """Of each last turn the part that the model did not draw; None where it drew all of every one."""
    parts = []
    for talk in talks:
        begin, end = talk.spans[-1]
        parts.append([i for i, own in zip(talk.row.ids[begin:end], talk.row.drawn[begin:end], strict=True) if not own])
    if not any(parts):
        return None
    return policy.tokenizer.batch_decode(parts, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _turns(talks: Sequence[Talk], width: int) -> Tensor:
    """The number of the turn that each token belongs to or stands behind, float32 [R, width], 0 behind the row."""
    turn = torch.zeros(len(talks), width)
    for i, talk in enumerate(talks):
        for number, (begin, _) in enumerate(talk.spans, 1):
            turn[i, begin : len(talk.row.ids)] = number
    return turn


def _ends(policy: Any, talks: Sequence[Talk], width: int) -> Tensor:
    """As `token_ends`, of the last turns, whose texts the samples have; 0 before."""
    ends = torch.zeros(len(talks), width)
    for i, talk in enumerate(talks):
        begin, end = talk.spans[-1]
        own = torch.tensor([talk.row.ids[begin:end]])
        ends[i, begin:end] = token_ends(policy.tokenizer, own, torch.tensor([end - begin]), policy.stop)[0]
    return ends
