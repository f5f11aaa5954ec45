"""Completions that an iteration leaves unfinished, and a later one goes on with under its own weights."""

from collections.abc import Sequence
from typing import Any

import torch

from flowrl.contracts import Drawing, Explored, Prompt
from flowrl.policies.language.inputs import Inputs
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.language.proving import telling
from flowrl.policies.language.rows import Row, go_on, stacked
from flowrl.policies.noise import Key, copy_numbers

SAVED = ("ids", "drawn", "logp", "entropy", "version")


class Unfinished:
    """Groups of which some completion has not ended, a part of a run's state. prompts: all that may be drawn."""

    def __init__(self, prompts: Sequence[Prompt]):
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self.groups: list[list[Row]] = []
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
    policy: LanguagePolicy, drawing: Drawing, score: object, *, tokens: int, unfinished: Unfinished
) -> Explored:
    """The groups of which every completion has ended, those that earlier iterations began among them.

    An iteration draws at most `tokens` of a completion; what has not ended goes on in the next, under its weights:
    partial rollouts of Kimi k1.5 (arXiv:2501.12599, section 2.6.2) and AReaL (arXiv:2505.24298). Log-probs are those
    under who drew a token, `age` in step_stats is how many iterations ago that was. Where no group ends, all are drawn
    on until one does.
    """
    policy.prepare(telling(drawing.prompts), drawing.plan)
    unfinished.count += 1
    copy, size = copy_numbers(p.id for p in drawing.prompts), drawing.group
    keys = [
        [Key(drawing.seed, p.id, drawing.first + i, copy[at]) for i in range(size)]
        for at, p in enumerate(drawing.prompts)
    ]
    fresh = policy.start(drawing.prompts, keys, drawing.plan)
    groups = unfinished.groups + [fresh[at : at + size] for at in range(0, len(fresh), size)]
    done: list[list[Row]] = []
    while not done:
        rows = [row for group in groups for row in group]
        until = [len(row.ids) + tokens for row in rows]
        go_on(policy, rows, drawing.plan, until=until, progress=drawing.progress)
        for row in rows:
            row.version += [unfinished.count] * (len(row.ids) - len(row.version))
        done = [g for g in groups if all(r.ended or len(r.ids) >= drawing.plan.max_new_tokens for r in g)]
    unfinished.groups = [group for group in groups if not any(group is other for other in done)]
    flat = [row for group in done for row in group]
    rollout = policy.completed(flat, torch.arange(len(done)).repeat_interleave(size), drawing.plan)
    age = (unfinished.count - stacked(flat, "version")).where(rollout.mask, 0.0)
    rollout.step_stats["age"] = age
    metrics = {"partial/waiting": float(len(unfinished.groups)), "partial/groups": float(len(done))}
    return Explored(rollout, None, metrics | {"partial/age": float(age[rollout.mask].mean())})
