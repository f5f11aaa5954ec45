"""Conversations of which more is drawn once they were scored: hints, and what came of going on from each turn."""

from collections.abc import Sequence

import torch

from flowrl.contracts import Drawing, Explored, Prompt
from flowrl.policies.language.drawing.guided import FAR, Scores, help_stuck
from flowrl.policies.language.drawing.trees import ScoreAll
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.language.proving import telling
from flowrl.policies.language.talks.conversations import Conversations
from flowrl.policies.language.talks.state import Talk, completed, named_turns
from flowrl.policies.noise import Key, copy_numbers, group_keys


def talks_with_hints(
    policy: LanguagePolicy,
    drawing: Drawing,
    score: ScoreAll,
    *,
    shares: Sequence[float] = (0.25, 0.5, 0.75),
    place: str = "prompt",
    text: str = " {hint}",
    column: str = "solution",
    right: float = 0.0,
) -> Explored:
    """`guided.hints` of conversations: groups without a right one are drawn anew with a part of the solution.

    It goes to the prompt, or is the begin of the model's first turn, where it is given and not trained.
    """
    speaks = _speaks(policy, drawing)
    talks = _drawn(policy, speaks, drawing, drawing.prompts, [""] * len(drawing.prompts), drawing.first)
    size = drawing.group
    rewards, total = score(completed(policy, talks, _groups(len(talks), size), drawing.plan).samples)

    def again(groups: Sequence[int], prompts: list[Prompt], begins: list[str], first: int) -> Scores:
        made = _drawn(policy, speaks, drawing, prompts, begins, first)
        scores = score(completed(policy, made, _groups(len(made), size), drawing.plan).samples)
        for at, i in enumerate(groups):
            talks[i * size : (i + 1) * size] = made[at * size : (at + 1) * size]
        return scores

    metrics = help_stuck(
        drawing, rewards, total, again, shares=shares, place=place, text=text, column=column, right=right
    )
    return Explored(completed(policy, talks, _groups(len(talks), size), drawing.plan), rewards, metrics)


def values_of_turns(
    policy: LanguagePolicy, drawing: Drawing, score: ScoreAll, *, continuations: int = 9, steps: int = 20
) -> Explored:
    """`values.values` of conversations, whose steps are their turns.

    From the begin of each of the first `steps` turns `continuations` go on, with environments that the turns before
    have brought there; the begin of a prompt, and any that conversations share, is valued once.
    """
    speaks = _speaks(policy, drawing)
    talks = _drawn(policy, speaks, drawing, drawing.prompts, [""] * len(drawing.prompts), drawing.first)
    number, nodes = ([0] * len(drawing.prompts) for _ in range(2))
    place: dict[tuple[int, ...], int] = {}
    valued: list[list[tuple[int, int, int]]] = []  # of each row: where a turn begins, where the next, its number
    probes, owners = list[Talk](), list[int]()
    copy = copy_numbers(prompt.id for prompt in drawing.prompts)
    for at, talk in enumerate(talks):
        i, valued = at // drawing.group, [*valued, []]
        nodes[i] = named_turns(talk, 0, nodes[i])
        begins = [begin for begin, _ in talk.spans]
        turns = list(enumerate(zip(begins, [*begins[1:], len(talk.row.ids)], strict=True)))[:steps]
        for turn, (begin, end) in turns if talk.failure is None else ():
            state = (i, *talk.row.ids[:begin])
            if state not in place:
                place[state] = len(place)
                for _ in range(continuations):
                    key = Key(drawing.seed, drawing.prompts[i].id, drawing.first + FAR + number[i], copy[i])
                    number[i] += 1
                    probes.append(speaks.forked(talk, turn, key))
                    owners.append(i)
            valued[-1].append((begin, end, place[state]))
    speaks.converse(policy, probes, drawing.plan, drawing.progress)
    rollout = completed(policy, talks, _groups(len(talks), drawing.group), drawing.plan)
    value, mean = torch.full(rollout.mask.shape, torch.nan), torch.zeros(0)
    if probes:
        _, total = score(completed(policy, probes, torch.tensor(owners), drawing.plan).samples)
        mean = total.unflatten(0, (-1, continuations)).nanmean(1)
    for row, own in enumerate(valued):
        for begin, end, of in own:
            value[row, begin:end] = float(mean[of])
    rollout.step_stats["value"] = value
    metrics = {"values/states": len(place) / len(talks), "values/continuations": float(len(probes))}
    return Explored(rollout, None, metrics | {"values/mean": float(mean.nanmean())})


def _speaks(policy: LanguagePolicy, drawing: Drawing) -> Conversations:
    policy.prepare(telling(drawing.prompts), drawing.plan)
    if policy.conversations is None:
        raise ValueError("conversations need an environment that answers them")
    return policy.conversations


def _drawn(
    policy: LanguagePolicy,
    speaks: Conversations,
    drawing: Drawing,
    prompts: Sequence[Prompt],
    begins: Sequence[str],
    first: int,
) -> list[Talk]:
    """A group of conversations about each prompt, the model's first turn with this begin."""
    keys = group_keys(drawing.seed, [prompt.id for prompt in prompts], range(first, first + drawing.group))
    talks = speaks.started(policy, prompts, keys, drawing.plan)
    for at, talk in enumerate(talks):
        if begin := begins[at // drawing.group]:
            talk.row.give(policy.tokenizer(begin, add_special_tokens=False).input_ids[: drawing.plan.max_new_tokens])
    speaks.converse(policy, talks, drawing.plan, drawing.progress)
    return talks


def _groups(rows: int, size: int) -> torch.Tensor:
    return torch.arange(rows // size).repeat_interleave(size)
