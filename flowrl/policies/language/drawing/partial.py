"""Completions that an iteration leaves unfinished, and a later one goes on with under its own weights.

Over several ranks every one of them knows of all groups, and a draw ends for all of them alike: once a group has ended
on any. Who goes on with a group is settled anew in each draw, so that a run may resume with another number of ranks;
media do not travel, whoever goes on reads them from the prompt.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import ALONE, Drawing, Explored, Prompt, Ranks, Rollout
from flowrl.policies.language.drawing.rows import Row, go_on, stacked
from flowrl.policies.language.media.inputs import Inputs
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.language.proving import telling
from flowrl.policies.noise import Key, copy_numbers
from samplers.tokens import Generation

Group = list[Row]
SAVED = ("ids", "drawn", "logp", "entropy", "version")


class Unfinished:
    """Groups of which some completion has not ended, a part of a run's state. prompts: all that may be drawn."""

    def __init__(self, prompts: Sequence[Prompt]):
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self.groups: list[Group] = []
        self.count = 0  # of iterations: the version of the weights

    def state_dict(self) -> dict[str, Any]:
        """The rows as they stand, with what names their noise, and the count."""
        groups = [[self._saved(row) for row in rows] for rows in self.groups]
        return {"count": self.count, "groups": groups}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state."""
        self.count = state["count"]
        self.groups = [[self._row(saved) for saved in rows] for rows in state["groups"]]

    def _saved(self, row: Row) -> dict[str, Any]:
        own = {name: list(getattr(row, name)) for name in SAVED}
        key = [row.key.seed, row.key.prompt, row.key.index, row.key.copy]
        media = {} if row.inputs is None else {"inputs": row.inputs.state()}
        return own | {"prompt_ids": list(row.prompt_ids), "key": key, "ended": row.ended} | media

    def _row(self, saved: dict[str, Any]) -> Row:
        key = Key(*saved["key"])
        lists: dict[str, Any] = {name: list(saved[name]) for name in SAVED} | {"node": [0] * len(saved["ids"])}
        inputs = Inputs.of_state(saved["inputs"]) if "inputs" in saved else None
        ids = list(saved["prompt_ids"])
        return Row(self._prompts[key.prompt], ids, key, ended=saved["ended"], inputs=inputs, **lists)


def partial_rollouts(
    policy: LanguagePolicy,
    drawing: Drawing,
    score: object,
    *,
    tokens: int,
    unfinished: Unfinished,
    ranks: Ranks = ALONE,
) -> Explored | None:
    """The groups of which every completion has ended, those that earlier iterations began among them.

    An iteration draws at most `tokens` of a completion; what has not ended goes on in the next, under its weights:
    partial rollouts of Kimi k1.5 (arXiv:2501.12599, section 2.6.2) and AReaL (arXiv:2505.24298). Log-probs are those
    under who drew a token, `age` in step_stats is how many iterations ago that was. Where no group ends, all are drawn
    on until one does. Ranks share out the groups; None where none of this one's has ended.
    """
    policy.prepare(telling(drawing.prompts), drawing.plan)
    unfinished.count += 1
    copy, size = copy_numbers(p.id for p in drawing.prompts), drawing.group
    keys = [
        [Key(drawing.seed, p.id, drawing.first + i, copy[at]) for i in range(size)]
        for at, p in enumerate(drawing.prompts)
    ]
    groups = unfinished.groups + [
        [Row(p, [], key) for key in own] for p, own in zip(drawing.prompts, keys, strict=True)
    ]
    mine = {i: groups[i] for i in _shares([rows[0].key.prompt for rows in groups], ranks)}
    _ready(policy, mine.values(), drawing.plan)
    rows = [row for group in mine.values() for row in group]
    done, ended = list[int](), list[int]()
    while not done:
        go_on(policy, rows, drawing.plan, until=[len(row.ids) + tokens for row in rows], progress=drawing.progress)
        for row in rows:
            row.version += [unfinished.count] * (len(row.ids) - len(row.version))
        limit = drawing.plan.max_new_tokens
        ended = [i for i, group in mine.items() if all(row.ended or len(row.ids) >= limit for row in group)]
        done = sorted(i for of in ranks.gather(ended) for i in of)
    rollout = _completed(policy, [mine[i] for i in ended], drawing, unfinished.count)
    unfinished.groups = [group for i, group in enumerate(groups) if i not in done]
    metrics = {"partial/waiting": float(len(unfinished.groups)), "partial/groups": float(len(done))}
    if ranks.size == 1:
        assert rollout is not None
        ages = rollout.step_stats["age"][rollout.mask]
        return Explored(rollout, None, metrics | {"partial/age": float(ages.mean())})
    waiting = {i: [_told(row) for row in group] for i, group in mine.items() if i not in done}
    ages = torch.zeros(0) if rollout is None else rollout.step_stats["age"][rollout.mask]
    told = ranks.gather((waiting, float(ages.double().sum()), len(ages)))
    for i, states in (pair for part in told for pair in part[0].items()):
        groups[i][:] = [_taken(row, state) for row, state in zip(groups[i], states, strict=True)]
    if rollout is None:
        return None
    number = sum(part[2] for part in told)
    metrics["partial/age"] = sum(part[1] for part in told) / number if number else float("nan")
    return Explored(rollout, None, metrics, [done.index(i) for i in ended])


def _shares(prompts: Sequence[str], ranks: Ranks) -> list[int]:
    """The positions of this rank's groups; equal prompts are one rank's, in their order."""
    owner: dict[str, int] = {}
    return [i for i, p in enumerate(prompts) if owner.setdefault(p, len(owner)) % ranks.size == ranks.rank]


def _ready(policy: LanguagePolicy, groups: Iterable[Group], plan: Generation) -> None:
    """Gives rows that another process drew, or none, the ids and the media of their prompts."""
    lacking = [g for g in groups if not g[0].prompt_ids or (policy.processor is not None and g[0].inputs is None)]
    made = policy.start([g[0].prompt for g in lacking], [[row.key for row in g] for g in lacking], plan)
    for row, own in zip((row for group in lacking for row in group), made, strict=True):
        row.prompt_ids, row.inputs = own.prompt_ids, own.inputs


def _completed(policy: LanguagePolicy, groups: Sequence[Group], drawing: Drawing, count: int) -> Rollout | None:
    """The rollout of these groups, with the age of each token; None of none."""
    if not groups:
        return None
    rows = [row for group in groups for row in group]
    rollout = policy.completed(rows, torch.arange(len(groups)).repeat_interleave(drawing.group), drawing.plan)
    rollout.step_stats["age"] = (count - stacked(rows, "version")).where(rollout.mask, 0.0)
    return rollout


# ---------------------------------------------------------------------- what ranks tell each other of a row

WIDTHS = {"ids": torch.int32, "drawn": torch.bool, "logp": torch.float32, "entropy": torch.float32}
WIDTHS |= {"version": torch.int32}


def _told(row: Row) -> tuple[bool, list[Tensor]]:
    """A row as it stands, but for what its prompt and its key say: 17 bytes a token."""
    lists = {"prompt_ids": row.prompt_ids} | {name: getattr(row, name) for name in SAVED}
    return row.ended, [torch.tensor(values, dtype=WIDTHS.get(name, torch.int32)) for name, values in lists.items()]


def _taken(row: Row, told: tuple[bool, list[Tensor]]) -> Row:
    """The row of that prompt and key as a rank told of it."""
    ended, tensors = told
    prompt_ids, *lists = (values.tolist() for values in tensors)
    own: dict[str, Any] = dict(zip(SAVED, lists, strict=True)) | {"node": [0] * len(lists[0])}
    return Row(row.prompt, prompt_ids, row.key, ended=ended, **own)
