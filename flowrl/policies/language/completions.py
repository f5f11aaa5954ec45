"""What a rollout of completions stores, and a rollout of texts that nobody drew."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import Prompt, Rollout, Samples
from flowrl.policies.language.media.inputs import Inputs
from flowrl.policies.noise import Key, copy_numbers
from flowrl.untyped import Tokenizer
from samplers.tokens import Generation


@dataclass
class Completions:
    """What a rollout stores: ids of each row's prompt, tokens int64 [R, K] and how many of them count, int64 [R].

    inputs: the media of each row; None where the model reads text alone. roles int64 [R]: the adapter that each row was
    drawn with, where there are several. shown: the media of each row for a second look (`contracts.View.shown`), None
    for a row that has none; None where nothing looks twice. asked: what the ids of each row's prompt were made of; None
    where that is the prompt of its sample.
    """

    prompts: list[list[int]]
    tokens: Tensor
    length: Tensor
    plan: Generation
    inputs: list[Inputs] | None = None
    roles: Tensor | None = None
    shown: Sequence[Inputs | None] | None = None
    asked: Sequence[Prompt] | None = None

    def inputs_of(self, rows: Tensor) -> list[Inputs] | None:
        """The media of these rows, int64 [r]."""
        return None if self.inputs is None else [self.inputs[i] for i in rows.tolist()]

    def beside(self, second: bool) -> Sequence[Inputs] | None:
        """The media of each row for a look, or for the second one, of rows that have others then.

        Raises ValueError where nothing was kept for a second look.
        """
        if not second:
            return self.inputs
        if self.shown is None or self.inputs is None:
            raise ValueError("the rollout has no other pictures for a second look: they are made where it is drawn")
        return [own if other is None else other for own, other in zip(self.inputs, self.shown, strict=True)]

    def unshown(self, rows: Tensor) -> Tensor:
        """Which of these rows, int64 [r], have no other media for a second look, bool [r]."""
        return torch.tensor([self.shown is None or self.shown[i] is None for i in rows.tolist()])

    def by_role(self, rows: Tensor) -> list[tuple[int, Tensor]]:
        """These rows, int64 [r], by the number of their role; all together where there is one."""
        if self.roles is None:
            return [(0, rows)]
        own = self.roles[rows]
        return [(role, rows[own == role]) for role in own.unique().tolist()]


def given_texts(
    tokenizer: Tokenizer,
    stop: Sequence[int],
    pad: int,
    prompts: Sequence[Prompt],
    ids: Sequence[list[int]],
    texts: Sequence[str],
    plan: Generation,
    inputs: Sequence[Inputs] | None = None,
) -> Rollout:
    """A rollout of these completions, as many for each prompt, prompt by prompt, each with a token that ends it.

    stop, pad: ids that end a completion, and that of padding. ids, inputs: those of each prompt. A text beyond the
    plan's limit is cut there. Nobody drew them: their rollout_logp is 0.
    """
    group = len(texts) // len(prompts)
    rows = [_tokens(tokenizer, text, stop)[: plan.max_new_tokens] for text in texts]
    length = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), int(length.max())), pad)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    samples = Samples(
        [prompt for prompt in prompts for _ in range(group)],
        torch.arange(len(prompts)).repeat_interleave(group),
        texts=list(texts),
        lengths=length,
        truncated=torch.tensor([row[-1] not in stop for row in rows]),
    )
    mask = torch.arange(tokens.shape[1]) < length[:, None]
    owners = [own for own in ids for _ in range(group)]
    media = None if inputs is None else [own for own in inputs for _ in range(group)]
    return Rollout(samples, torch.zeros(tokens.shape), mask, Completions(owners, tokens, length, plan, media))


def shown_beside(
    policy: Any, rollout: Rollout, *, shown: Sequence[Sequence[Any]], seed: int, first: int = 0, **_: Any
) -> Rollout:
    """The rollout with the media of its rows as their views (views.py) change them; shown: of each prompt the view of
    each row, or None. Where a prompt comes twice, its rows are changed differently."""
    views = [view for own in shown for view in own]
    size, prompts, held = len(shown[0]), rollout.samples.prompts, rollout.replay
    copy = [number for number in copy_numbers(prompt.id for prompt in prompts[::size]) for _ in range(size)]
    held.inputs = [
        held.inputs[i] if view is None else view.inputs(policy, p, Key(seed, p.id, first, copy[i]), held.prompts[i])
        for i, (view, p) in enumerate(zip(views, prompts, strict=True))
    ]
    return rollout


def _tokens(tokenizer: Tokenizer, text: str, stop: Collection[int]) -> list[int]:
    """The tokens of a completion and of its end."""
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    end = tokenizer.eos_token_id if tokenizer.eos_token_id in stop else next(iter(stop), None)
    return ids if end is None else [*ids, end]


def plain_rows(rollout: Rollout) -> list[dict[str, Any]]:
    """Each row as lists: ids of the prompt, tokens, the log-probs they were drawn with, and which are trained."""
    held, rows = rollout.replay, []
    for i, length in enumerate(held.length.tolist()):
        tokens, logp = held.tokens[i, :length].tolist(), rollout.rollout_logp[i, :length].tolist()
        mask = rollout.mask[i, :length].tolist()
        rows.append({"ids": list(held.prompts[i]), "tokens": tokens, "logp": logp, "mask": mask})
        if held.inputs is not None:
            rows[-1]["inputs"] = held.inputs[i].state()
    return rows


def rollout_of(rows: Sequence[Mapping[str, Any]], plan: Generation, pad: int) -> Rollout:
    """The rollout that such rows come from, its samples without prompts of their own."""
    length = torch.tensor([len(row["tokens"]) for row in rows])
    shape = len(rows), int(length.max())
    tokens, logp = torch.full(shape, pad), torch.zeros(shape)
    mask = torch.zeros(shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        number = len(row["tokens"])
        tokens[i, :number], logp[i, :number] = torch.tensor(row["tokens"]), torch.tensor(row["logp"])
        mask[i, :number] = torch.tensor(row["mask"])
    samples = Samples([Prompt("stored", "")] * len(rows), torch.arange(len(rows)), lengths=length)
    media = [Inputs.of_state(row["inputs"]) for row in rows] if all("inputs" in row for row in rows) else None
    return Rollout(samples, logp, mask, Completions([list(row["ids"]) for row in rows], tokens, length, plan, media))
