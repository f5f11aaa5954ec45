"""Rows that begin elsewhere: completions that go on from tokens which are there already, and may share them.

A row is a completion as it stands: its tokens, which of them the model drew, their log-probs then. What was given takes
no part in the loss unless log-probs come with it; decoding goes on behind it, and a replay scores it like any other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from flowrl.contracts import Progress, Prompt
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.drawing.decoding import draw_on
from flowrl.policies.language.drawing.prefixes import Prefix
from flowrl.policies.language.drawing.reading import Reading, read
from flowrl.policies.language.drawing.static_cache import StaticCache, StaticReading
from flowrl.policies.language.drawing.stopping import Stop
from flowrl.policies.language.media.inputs import EMPTY, Inputs
from flowrl.policies.merging import MayMerge, drawing
from flowrl.policies.noise import Key, group_keys, token_uniforms
from flowrl.untyped import LanguageModel, Tokenizer
from samplers.tokens import Generation

NAN = float("nan")


@dataclass(frozen=True)
class Begun:
    """A completion that a row goes on from: its ids, of tokens after the prompt.

    logp: their log-probabilities under who drew them, NaN for tokens that are not to be trained (None: none is). drawn:
    which of them the model drew (None: those with a log-prob); a reward is told the others (`Samples.given`).
    inputs: the media that stand among the ids, such as those of an observation.
    Raises ValueError for lists of different lengths.
    """

    ids: Sequence[int]
    logp: Sequence[float] | None = None
    drawn: Sequence[bool] | None = None
    inputs: Inputs | None = None

    def __post_init__(self) -> None:
        for name in ("logp", "drawn"):
            if (given := getattr(self, name)) is not None and len(given) != len(self.ids):
                raise ValueError(f"{name} has {len(given)} values for {len(self.ids)} tokens; give one a token")


@dataclass
class Row:
    """A completion as it stands. prompt_ids: the prompt's; key names the noise of the tokens that are still to come.

    logp: NaN for tokens that are not trained. node: of a tree, the number of the segment that each token belongs to;
    tree: which one of its prompt's it is; version: of the weights that a token was drawn under, where that is told.
    ended: whether a token of the model ended it. prefix: keys and values of all of it but the last token, where kept.
    inputs: the media of the prompt and of what was given since; None where the model reads text alone. role: the number
    of the adapter that draws it. asked: what prompt_ids were made of, where that is not the prompt as it is.
    """

    prompt: Prompt
    prompt_ids: list[int]
    key: Key
    ids: list[int] = field(default_factory=list)
    drawn: list[bool] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    node: list[int] = field(default_factory=list)
    version: list[int] = field(default_factory=list)
    ended: bool = False
    tree: int = 0
    role: int = 0
    prefix: Prefix | None = None
    inputs: Inputs | None = None
    asked: Prompt | None = None

    def give(
        self,
        ids: Sequence[int],
        logp: Sequence[float] | None = None,
        drawn: Sequence[bool] | None = None,
        inputs: Inputs | None = None,
    ) -> None:
        """Appends tokens that the model does not draw now; see `Begun`. Raises PolicyError for media that it cannot
        take."""
        if inputs:
            if self.inputs is None:
                raise PolicyError("the model reads text alone and was given a picture; give a vision-language model")
            self.inputs = self.inputs.then(inputs, len(self.prompt_ids) + len(self.ids))
            self.prefix = None  # a row with new media is read whole again
        known = [NAN] * len(ids) if logp is None else list(logp)
        self.ids += ids
        self.logp += known
        self.drawn += [not math.isnan(value) for value in known] if drawn is None else drawn
        self.entropy += [0.0] * len(ids)
        self.node += [self.node[-1] if self.node else 0] * len(ids)

    def fork(self, at: int, key: Key) -> "Row":
        """A row that shares the first `at` tokens and goes on by noise of its own."""
        known = None if self.prefix is None else self.prefix.cut(len(self.prompt_ids) + at - 1)
        lists = {name: list(getattr(self, name)[:at]) for name in ("ids", "drawn", "logp", "entropy", "node")}
        inputs = None if self.inputs is None else self.inputs.cut(len(self.prompt_ids) + at)
        return replace(self, key=key, ended=False, prefix=known, inputs=inputs, **lists)


class DrawsRows(MayMerge, Protocol):
    """What is asked of a policy by those that draw rows."""

    model: LanguageModel
    tokenizer: Tokenizer
    stop: Stop
    pad: int
    keep_entropy: bool
    max_rows: int | None
    barred: Sequence[int]
    batch_invariant: bool
    static: StaticCache | None

    def start(self, prompts: Sequence[Prompt], keys: Sequence[Sequence[Key]], plan: Generation) -> list[Row]:
        """Rows without a token yet."""
        ...


class DrawsOn(Protocol):
    """Who draws on in rows of a policy: the model here (`go_on`), or a server in its place."""

    def __call__(
        self,
        policy: DrawsRows,
        rows: Sequence[Row],
        plan: Generation,
        *,
        until: int | Sequence[int] | None = None,
        keep: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """See `go_on`."""
        ...


def begun_rows(
    policy: DrawsRows, begun: Sequence[Begun | None], prompts: Sequence[Prompt], plan: Generation, seed: int, first: int
) -> list[Row]:
    """Rows as they are begun, prompt by prompt; their noise is that of samples `first` and on of their prompts.

    Raises ValueError where prompts do not have equally many of them.
    """
    size, left = divmod(len(begun), len(prompts))
    if left or not size:
        raise ValueError(f"begun has {len(begun)} rows for {len(prompts)} prompts; give as many for each, one a row")
    keys = group_keys(seed, [prompt.id for prompt in prompts], range(first, first + size))
    rows = policy.start(prompts, keys, plan)
    for row, known in zip(rows, begun, strict=True):
        if known is not None:
            row.give(known.ids, known.logp, known.drawn, known.inputs)
            row.ended = bool(row.ids) and policy.stop.ends(row.ids)
    return rows


def go_on(
    policy: DrawsRows,
    rows: Sequence[Row],
    plan: Generation,
    *,
    until: int | Sequence[int] | None = None,
    keep: bool = False,
    node: Sequence[int] | None = None,
    progress: Progress | None = None,
    model: LanguageModel | None = None,
) -> None:
    """Draws on in every row that has not ended, up to `until` tokens after the prompt (None: all that the plan has).

    Rows that stand at the same tokens are read once. keep: afterwards rows have their `prefix`. node: the segment that
    a row's new tokens belong to. progress: told of tokens that are drawn, and of given ones that have to be read.
    model: what draws in place of the policy's own, a copy of it.
    """
    limits, waiting = waiting_rows(rows, plan, until)
    size = policy.max_rows or max(len(waiting), 1)
    with drawing(policy):
        for start in range(0, len(waiting), size):
            part = waiting[start : start + size]
            nodes = None if node is None else [node[i] for i in part]
            ends = torch.tensor([limits[i] for i in part])
            _draw_part(policy, model or policy.model, [rows[i] for i in part], plan, ends, nodes, keep, progress)


def waiting_rows(
    rows: Sequence[Row], plan: Generation, until: int | Sequence[int] | None
) -> tuple[list[int], list[int]]:
    """(how many tokens after the prompt each row may have, the places of those that are to be drawn on in)."""
    ends = [until] * len(rows) if isinstance(until, int) else until or [plan.max_new_tokens] * len(rows)
    limits = [min(end, plan.max_new_tokens) for end in ends]
    return limits, [i for i, row in enumerate(rows) if not row.ended and len(row.ids) < limits[i]]


def finish(
    policy: DrawsRows,
    rows: Sequence[Row],
    plan: Generation,
    *,
    begin: Sequence[int] | None = None,
    until: Sequence[int] | None = None,
    keep: bool = False,
    progress: Progress | None = None,
    draw: DrawsOn = go_on,
) -> None:
    """Draws on in every row to its end; rows that come near the limit are given the text that plan.force has.

    begin: of each row the place from which it may have written that text itself. until, keep: see `go_on`.
    """
    if plan.force is not None:
        text, left = plan.force
        near = plan.max_new_tokens - left
        ends = [near] * len(rows) if until is None else [min(end, near) for end in until]
        draw(policy, rows, plan, until=ends, keep=keep, progress=progress)
        ids = policy.tokenizer(text, add_special_tokens=False).input_ids
        for row, at in zip(rows, begin or [0] * len(rows), strict=True):
            if not row.ended and len(row.ids) >= near and text not in policy.tokenizer.decode(row.ids[at:]):
                row.give(ids[: min(left, plan.max_new_tokens - len(row.ids))])
    draw(policy, rows, plan, until=until, keep=keep, progress=progress)


def _draw_part(
    policy: DrawsRows,
    model: LanguageModel,
    rows: Sequence[Row],
    plan: Generation,
    until: Tensor,
    node: Sequence[int] | None,
    keep: bool,
    progress: Progress | None,
) -> None:
    place: dict[tuple[object, ...], int] = {}
    firsts: list[Row] = []  # of those at the same tokens, with the same media
    owners = []
    for row in rows:
        owners.append(place.setdefault((*row.prompt_ids, *row.ids, *(row.inputs or EMPTY).key), len(place)))
        firsts += [row] if len(place) > len(firsts) else []
    prefixes: list[Prefix | None] = [None] * len(place)
    for row, owner in zip(rows, owners, strict=True):
        prefixes[owner] = prefixes[owner] or row.prefix
    if progress is not None:  # of prompts nothing is told, here as elsewhere
        unread = [
            len(row.ids) if known is None else len(row.prompt_ids) + len(row.ids) - len(known) - 1
            for row, known in zip(firsts, prefixes, strict=True)
        ]
        progress(sum(unread))
    media = [row.inputs for row in firsts if row.inputs is not None] or None
    contexts = [[*row.prompt_ids, *row.ids] for row in firsts]
    reading = read(model, contexts, pad=policy.pad, prefixes=prefixes, inputs=media)
    index, begin = torch.tensor(owners, device=model.device), torch.tensor([len(row.ids) for row in rows])
    if policy.static is None:
        reading.select(index)
    else:
        longest = max(len(row.prompt_ids) + end for row, end in zip(rows, until.tolist(), strict=True))
        reading = StaticReading(reading, index, policy.static.buffers(model, len(rows), longest))
    uniforms = token_uniforms([row.key for row in rows], int(until.max()))
    entropy = torch.zeros(uniforms.shape) if policy.keep_entropy else None

    def leave(which: Tensor, where: Tensor, now: Reading) -> None:
        for i, at in zip(which.tolist(), where.tolist(), strict=True):
            rows[i].prefix = now.prefix(at)

    options: dict[str, Any] = {"stop": policy.stop, "pad": policy.pad, "progress": progress, "entropy": entropy}
    options |= {"leave": leave if keep else None, "barred": policy.barred}
    tokens, logp, length = draw_on(model, reading, uniforms, begin, until, plan, **options)
    for i, row in enumerate(rows):
        new = slice(int(begin[i]), int(length[i]))
        ids = tokens[i, new].tolist()
        row.ids += ids
        row.logp += logp[i, new].tolist()
        row.drawn += [True] * len(ids)
        row.entropy += [0.0] * len(ids) if entropy is None else entropy[i, new].tolist()
        row.node += [(row.node[-1] if row.node else 0) if node is None else node[i]] * len(ids)
        row.ended = policy.stop.ends(ids)
        row.prefix = row.prefix if keep else None


def stacked(rows: Sequence[Row], name: str) -> Tensor:
    """A list of every row's tokens as one tensor [R, K], 0 behind its end."""
    width = max(len(row.ids) for row in rows)
    dtype = {"ids": torch.int64, "drawn": torch.bool}.get(name, torch.float32)
    made = torch.zeros(len(rows), width, dtype=dtype)
    for i, row in enumerate(rows):
        made[i, : len(row.ids)] = torch.tensor(getattr(row, name), dtype=dtype)
    return made
