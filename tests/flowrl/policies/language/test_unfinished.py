"""Completions that wait for the next iteration, over several ranks: the groups, and the state, of one process."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import language_support
import vision_support as vision
from flowrl.contracts import ALONE, Drawing, Explored, Prompt, Ranks
from flowrl.policies.language.drawing.partial import Unfinished, partial_rollouts
from flowrl.policies.language.policy import LanguagePolicy
from samplers.tokens import Generation
from thread_ranks import together

PROMPTS = [*language_support.PROMPTS, Prompt("d", "5*5"), Prompt("e", "1+1")]
DRAWN = ([0, 1, 2, 1], [3, 4, 0, 2], [1, 3], [2, 4])  # of the prompts, an iteration each; one comes twice
Make = Callable[[], LanguagePolicy]


def iteration(
    policy: LanguagePolicy, kept: Unfinished, prompts: Sequence[Prompt], number: int, ranks: Ranks = ALONE
) -> Explored | None:
    drawing = Drawing([prompts[i % len(prompts)] for i in DRAWN[number]], 3, Generation(9), 7, 3 * number)
    return partial_rollouts(policy, drawing, None, tokens=4, unfinished=kept, ranks=ranks)


def groups_of(found: Explored | None, ids: dict[int, Any]) -> dict[str, float]:
    """Fills in the groups by their place: prompts, tokens, log-probs and ages; returns the metrics."""
    if found is None:
        return {}
    rollout = found.rollout
    places = found.at if found.at is not None else range(int(rollout.samples.group.max()) + 1)
    for own, place in enumerate(places):
        rows = (rollout.samples.group == own).nonzero()[:, 0].tolist()
        assert place not in ids and len(rows) == 3
        tokens = [rollout.replay.tokens[i, : rollout.replay.length[i]].tolist() for i in rows]
        numbers = [
            torch.cat([rollout.rollout_logp[i][rollout.mask[i]], rollout.step_stats["age"][i][rollout.mask[i]]])
            for i in rows
        ]
        shown = [rollout.replay.inputs[i].key if rollout.replay.inputs else () for i in rows]
        ids[place] = [rollout.samples.prompts[i].id for i in rows], tokens, shown, numbers
    return found.metrics


def same(a: dict[int, Any], b: dict[int, Any]) -> None:
    assert sorted(a) == sorted(b) == list(range(len(a)))
    for place, (prompts, tokens, shown, numbers) in a.items():
        assert (prompts, tokens, shown) == b[place][:3]
        assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(numbers, b[place][3], strict=True))


def history(make: Make, prompts: Sequence[Prompt], size: int) -> tuple[list[Any], list[Any], list[Any]]:
    """(the groups, the metrics, and each rank's state) after each iteration of so many ranks."""
    every: list[dict[int, Any]] = [{} for _ in DRAWN]
    metrics: list[list[dict[str, float]]] = [[] for _ in DRAWN]
    policies = [make() for _ in range(size)]

    def work(ranks: Any) -> list[Any]:
        kept, states = Unfinished(prompts), []
        for number in range(len(DRAWN)):
            given = ALONE if size == 1 else ranks
            metrics[number].append(
                groups_of(iteration(policies[ranks.rank], kept, prompts, number, given), every[number])
            )
            states.append(kept.state_dict())
        return states

    return every, metrics, together(size, work)


def check(make: Make, prompts: Sequence[Prompt], sizes: Sequence[int]) -> None:
    alone, told, (states,) = history(make, prompts, 1)
    waited = [of[0]["partial/waiting"] for of in told]
    assert max(waited) >= 2 and max(of[0]["partial/age"] for of in told) > 0
    for size in sizes:
        found, metrics, each = history(make, prompts, size)
        for number in range(len(DRAWN)):
            same(alone[number], found[number])
            for own in filter(None, metrics[number]):
                assert own == pytest.approx(told[number][0], abs=1e-6)
        assert all(one == each[0] for one in each), "every rank can save it all"
        for before, after in zip(states, each[0], strict=True):
            for a, b in zip(before["groups"], after["groups"], strict=True):
                for row, other in zip(a, b, strict=True):
                    assert row.keys() - other.keys() <= {"inputs"}
                    assert all(row[name] == other[name] for name in ("ids", "key", "ended", "version", "drawn"))
        # from the state of the ranks one process goes on as one that was alone
        kept, groups = Unfinished(prompts), {}
        kept.load_state_dict(each[0][1])
        groups_of(iteration(make(), kept, prompts, 2), groups)
        same(alone[2], groups)


def test_ranks_end_a_draw_together_and_give_the_groups_of_one_process():
    check(language_support.policy, PROMPTS, (2, 3))


def test_pictures_of_rows_that_wait_are_read_where_they_go_on(tmp_path: Path):
    folder, prompts = vision.folder(tmp_path / "model", "qwen2_5_vl"), vision.prompts(tmp_path)
    assert any(p.media for p in prompts)
    check(lambda: vision.policy(folder), prompts, (2,))
