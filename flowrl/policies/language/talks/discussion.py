"""Discussions: several roles of one model speak about a prompt in turn, each shown what was said before.

What is said is a row of its own: a completion of the question with what was heard, so that there is nothing to replay
but prompts and completions. Rows lie prompt by prompt, then discussion by discussion, then in the order of speaking.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from flowrl.contracts import Credit, Drawing, Explored, Progress, Prompt, Rollout
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.drawing.rows import Row, go_on
from flowrl.policies.language.drawing.trees import ScoreAll
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.noise import Key, copy_numbers
from samplers.tokens import Generation

PLACES = re.compile(r"\{(question|said|name|text)\}")


@dataclass(frozen=True)
class Speakers:
    """Who speaks, how often, what each is shown and asked, and whose rewards count; see the keys of `roles`."""

    names: Sequence[str]
    rounds: int
    hear: str
    ask: str | Mapping[str, str]
    line: str
    adapters: str
    share: str
    discount: float

    @property
    def contributions(self) -> int:
        """How often something is said in a discussion."""
        return len(self.names) * self.rounds

    def speaker(self, number: int) -> int:
        """Who makes the contribution of this number, counted from 0."""
        return number % len(self.names)

    def role(self, number: int) -> int:
        """With which adapter."""
        return self.speaker(number) if self.adapters == "names" else number // len(self.names)

    def heard(self, number: int) -> int:
        """How many contributions it is made after having heard."""
        return number if self.hear == "before" else number - self.speaker(number)

    def asked(self, prompt: Prompt, number: int, said: Sequence[str]) -> Prompt:
        """The prompt as it is put to who makes the contribution of this number; said: all contributions before it."""
        ask = self.ask.get(self.names[self.speaker(number)]) if isinstance(self.ask, Mapping) else self.ask
        heard = said[: self.heard(number)]
        if not heard or ask is None:
            return prompt
        lines = [_filled(self.line, name=self.names[self.speaker(i)], text=text) for i, text in enumerate(heard)]
        text, messages = _filled(ask, question=prompt.text, said="".join(lines)), prompt.messages
        if messages:
            messages = (*messages[:-1], {**messages[-1], "content": text})
        return replace(prompt, text=text, messages=messages)


def _filled(form: str, **values: str) -> str:
    """The form with values in its places, of which none is looked for in another's value."""
    return PLACES.sub(lambda place: values.get(place[1], place[0]), form)


def discussion(policy: LanguagePolicy, drawing: Drawing, score: ScoreAll, *, speakers: Speakers) -> Explored:
    """`drawing.group` discussions of each prompt; every contribution is a row, and a sample of its own.

    Whose rewards each gets is the rollout's credit. Metrics: the mean reward of each speaker in each round.
    """
    rows, number = _held(policy, drawing, speakers), speakers.contributions
    group = torch.arange(len(drawing.prompts)).repeat_interleave(drawing.group * number)
    rollout = policy.completed(rows, group, drawing.plan)
    rollout.credit = credit_of(speakers, drawing.group)
    rewards, total = score(rollout.samples)
    means = total.unflatten(0, (-1, number)).nanmean(0).tolist()
    names = [f"{speakers.names[speakers.speaker(i)]}_{i // len(speakers.names) + 1}" for i in range(number)]
    return Explored(rollout, rewards, {f"roles/{name}": mean for name, mean in zip(names, means, strict=True)})


def credit_of(speakers: Speakers, group: int) -> Credit:
    """How the rewards of contributions reach those that made them, of a prompt with `group` discussions.

    share `all`: (s[t, a] + sum over later rounds u of d^(u-t) mean over speakers b of s[u, b]) / sum of d^(u-t), for
    what speaker a says in round t (MAPoRL, arXiv:2502.18439, its code's discounted sum); `team`: the mean of s over the
    speakers of the last round, for all. Contributions of the same speaker and round are compared.
    """
    each, number, share = len(speakers.names), speakers.contributions, speakers.share
    of_one = torch.zeros(number, number)
    for i in range(number):
        for j in range(number):
            later = j // each - i // each
            if share == "last":
                of_one[i, j] = float(j == number - 1)
            elif share == "team":
                of_one[i, j] = float(j >= number - each)
            elif i == j:
                of_one[i, j] = 1.0
            elif later > 0 and share == "all":
                of_one[i, j] = speakers.discount**later / each
            elif later > 0 and j % each == i % each:
                of_one[i, j] = speakers.discount**later
    weights = torch.block_diag(*[of_one] * group)
    return Credit(weights[None, None], torch.arange(number).repeat(group))


@dataclass(frozen=True)
class Discussing:
    """A policy whose rollout holds a discussion a sample; what is said last is the sample."""

    policy: LanguagePolicy
    speakers: Speakers

    def rollout(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int = 1,
        plan: Generation,
        seed: int,
        first: int = 0,
        progress: Progress | None = None,
        **_: Any,
    ) -> Rollout:
        """`group_size` samples of each prompt, prompt by prompt; see `contracts.Policy`."""
        self.policy.prepare(prompts[0], plan)
        rows = _held(self.policy, Drawing(prompts, group_size, plan, seed, first, progress), self.speakers)
        last = rows[self.speakers.contributions - 1 :: self.speakers.contributions]
        return self.policy.completed(last, torch.arange(len(prompts)).repeat_interleave(group_size), plan)


def _held(policy: LanguagePolicy, drawing: Drawing, speakers: Speakers) -> list[Row]:
    """The rows of discussions that are held to their end."""
    _check_room(policy, drawing, speakers)
    plan, number = drawing.plan, speakers.contributions
    copies = copy_numbers(p.id for p in drawing.prompts)
    asked = [(p, copy, g) for p, copy in zip(drawing.prompts, copies, strict=True) for g in range(drawing.group)]
    held: list[list[Row]] = [[] for _ in asked]
    said: list[list[str]] = [[] for _ in asked]
    for at in range(number):
        shown = [speakers.asked(prompt, at, texts) for (prompt, _, _), texts in zip(asked, said, strict=True)]
        keys = [[Key(drawing.seed, p.id, drawing.first + g * number + at, copy)] for p, copy, g in asked]
        rows = policy.start(shown, keys, plan)
        for row, (prompt, _, _) in zip(rows, asked, strict=True):
            row.asked, row.prompt = row.prompt, prompt  # rewards and reports are about the question itself
            row.role = speakers.role(at)
        with policy.speaking(speakers.role(at)):
            go_on(policy, rows, plan, progress=drawing.progress)
        texts = policy.completed(rows, torch.arange(len(rows)), plan).samples.texts or ()
        for row, text, own, own_texts in zip(rows, texts, held, said, strict=True):
            own.append(row)
            own_texts.append(text)
    return [row for rows in held for row in rows]


def _check_room(policy: LanguagePolicy, drawing: Drawing, speakers: Speakers) -> None:
    """Raises PolicyError where the longest discussion that could be held would not fit the model."""
    limit = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    if limit is None:
        return
    longest = max(drawing.prompts, key=lambda p: len(p.text))
    numbers = range(speakers.contributions)
    shown = [speakers.asked(longest, at, [""] * at) for at in numbers]
    rows = policy.start(shown, [[Key(0, "", 0)]] * len(shown), drawing.plan)
    for at, row in zip(numbers, rows, strict=True):
        need = len(row.prompt_ids) + (speakers.heard(at) + 1) * drawing.plan.max_new_tokens
        if need > limit:
            raise PolicyError(
                f"generation.max_new_tokens: got {drawing.plan.max_new_tokens}, but who speaks after "
                f"{speakers.heard(at)} contributions of that length takes {need} of the model's {limit} positions; "
                "lower it, or roles.rounds"
            )
