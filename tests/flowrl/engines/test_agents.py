"""Agents that ask the policy over HTTP as they like, and the rows that their calls become."""

import json
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import language_support
from cli_support import quiet
from engines_support import solve
from flowrl.contracts import Prompt, View
from flowrl.core.advantages.rows import row_advantages
from flowrl.engines.agents import Agents, outcome_of
from flowrl.environments.workers import Workers
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.runs.start import run
from samplers.tokens import Generation

WAYS = ["on 12", "anew 3", "raises 45", "quiet", "chat", "greedy 6"]
PROMPTS = [Prompt(way, way) for way in WAYS]
TURNS = 3


def agents(workers: int = 8, deadline: float | None = 60.0, agent: Any = solve, batch: int = 1) -> Agents:
    return Agents(agent, Workers(workers, deadline), turns=TURNS, batch=batch)


@pytest.fixture(scope="module")
def policy() -> Any:
    return language_support.policy()


@pytest.fixture(scope="module")
def rollout(policy: Any) -> Any:
    return agents().rollout(policy, PROMPTS, 2, Generation(12), 5, 3)


def rows(rollout: Any, prompt: int, member: int) -> list[tuple[list[int], list[int], list[bool]]]:
    """(prompt, tokens, which of them are trained) of a sample's rows that are there."""
    first = (prompt * 2 + member) * TURNS
    held = rollout.replay
    return [
        (held.prompts[i], held.tokens[i, :n].tolist(), rollout.mask[i, :n].tolist())
        for i, n in enumerate(held.length.tolist())
        if first <= i < first + TURNS and rollout.mask[i].any()
    ]


def test_a_second_call_goes_on_with_the_row_or_begins_one(rollout: Any):
    for member in (0, 1):
        ((prompt, tokens, trained),) = rows(rollout, 0, member)
        given = trained.index(False)
        assert prompt == [1, 20, 21, 22, 23, 24] and tokens[given] == 7 and trained.count(False) == 1
        one, two = rows(rollout, 1, member)
        assert two[0] == [*one[0], 7, 7] and all(one[2]) and all(two[2])
        assert rollout.samples.lengths[2 + member] == len(one[1]) + len(two[1])


def test_calls_that_are_drawn_together_are_those_of_each_alone(policy: Any, rollout: Any):
    seen: list[int] = []
    hook = policy.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = agents(batch=8).rollout(policy, PROMPTS, 2, Generation(12), 5, 3)
    hook.remove()
    assert torch.equal(found.replay.tokens, rollout.replay.tokens) and torch.equal(found.mask, rollout.mask)
    assert torch.allclose(found.rollout_logp, rollout.rollout_logp, atol=1e-5) and max(seen) > 1


def test_members_draw_by_noise_of_their_own(rollout: Any):
    drawn = [rows(rollout, way, member) for way in (0, 1, 4) for member in (0, 1)]
    assert len({json.dumps(one) for one in drawn}) == len(drawn)


def test_what_fails_has_no_score_and_what_ran_into_a_limit_does(rollout: Any):
    talks = rollout.samples.talks
    assert [talks[2 * i].end for i in range(6)] == ["answer", "answer", "failed", "failed", "answer", "turns"]
    assert talks[4].failure == "the agent failed: RuntimeError: out of luck" and len(rows(rollout, 2, 0)) == 1
    assert talks[6].failure == "the agent made no call" and not rows(rollout, 3, 0)
    assert talks[10].failure is None and talks[10].outcome == {} and len(talks[10].said) == TURNS
    assert talks[8].outcome["words"] == 1 and talks[8].outcome["reward"] == len(rollout.samples.texts[8])
    assert rollout.samples.truncated.tolist() == [False, False] * 2 + [True, True] * 2 + [False, False, True, True]


def test_rows_of_a_sample_share_its_advantage(rollout: Any):
    score = torch.tensor([1.0, 2, 3, 5, torch.nan, 1, torch.nan, torch.nan, 0, 4, 1, 1])
    how: dict[str, Any] = {"weights": {"r": 1.0}}
    own = row_advantages({"r": score}, rollout.samples.group, None, **how)
    adv = row_advantages({"r": score}, rollout.samples.group, rollout.credit, **how).view(12, TURNS)
    there = rollout.mask.any(1).view(12, TURNS)
    assert torch.equal(adv, own[:, None].expand(12, TURNS).where(there, 0.0))
    assert adv[0, 0] < 0 < adv[1, 0] and adv[3, 1] == adv[3, 0] > 0 and not adv[4:6].any()


def test_a_replay_is_what_the_calls_gave(policy: Any, rollout: Any):
    seen: list[Any] = []
    at = rollout.mask.any(1).nonzero()[:, 0]
    with torch.no_grad():
        policy.look(rollout, at, View(), seen.append)
    gap = (seen[0].logp - rollout.rollout_logp[at]).abs()[rollout.mask[at]]
    assert gap.max() < 1e-5 and rollout.mask.sum() == rollout.samples.lengths.sum()


def test_one_worker_or_eight_give_the_same_bits(policy: Any, rollout: Any):
    alone = agents(1).rollout(policy, PROMPTS, 2, Generation(12), 5, 3)
    assert torch.equal(alone.replay.tokens, rollout.replay.tokens) and alone.samples.texts == rollout.samples.texts
    assert torch.equal(alone.rollout_logp, rollout.rollout_logp)


def test_eight_agents_are_at_work_at_once(policy: Any):
    meeting = threading.Barrier(8, timeout=30)

    def meet(base_url: str, prompt: Prompt) -> Any:
        meeting.wait()
        return solve(base_url, prompt)

    found = agents(agent=meet).rollout(policy, PROMPTS[:1], 8, Generation(12), 5, 0)
    assert [talk.end for talk in found.samples.talks] == ["answer"] * 8


def test_an_agent_that_takes_too_long_has_no_score_and_asks_in_vain(policy: Any):
    late, told = threading.Event(), []

    def dawdle(base_url: str, prompt: Prompt) -> Any:
        late.wait(30)
        try:
            return solve(base_url, prompt)
        finally:
            told.append(prompt.id)

    found = agents(deadline=0.05, agent=dawdle).rollout(policy, PROMPTS[:1], 1, Generation(12), 5, 0)
    late.set()
    assert found.samples.talks[0].failure.startswith("the agent failed: LateError") and not found.mask.any()
    end = time.monotonic() + 30
    while not told and time.monotonic() < end:
        threading.Event().wait(0.01)
    assert told == ["on 12"]


@pytest.mark.parametrize(
    ("given", "outcome"), [(None, {}), (2, {"reward": 2.0}), (True, {"reward": 1.0}), ({"a": 1}, {"a": 1.0})]
)
def test_outcomes_are_numbers_by_name(given: Any, outcome: Any):
    assert outcome_of(given) == outcome
    with pytest.raises((TypeError, ValueError)):
        outcome_of("well done")


SMALL = ["train.prompts=2", "train.group=2", "train.updates=2", "train.iterations=2", "device=cpu"]
SMALL += ["eval={at_start: false, at_end: true, every: null, prompts: 1, grid: 1}", "generation.max_new_tokens=12"]
SMALL += ["train.schedule=constant"]
SMALL += ["environment={agent: engines_support.asks, turns: 3, turn_tokens: 4}", "rewards={won: {use: outcome}}"]


def metrics(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time")} for row in rows]


def test_a_run_trains_an_agent_and_resumes_bit_for_bit(tmp_path: Path):
    run(load("tiny_lm_grpo", [f"output={tmp_path / 'whole'}", *SMALL, "checkpoint.every=1"]), quiet())
    whole = metrics(tmp_path / "whole")
    assert all(row["grad_norm"] > 0 and row["replay_gap_max"] < 1e-4 for row in whole if row["kind"] == "train")
    short = [f"output={tmp_path / 'parts'}", *SMALL, "checkpoint.every=1"]
    run(load("tiny_lm_grpo", [*short, "train.iterations=1", "eval.at_end=false"]), quiet())
    run(load("tiny_lm_grpo", short), quiet(), resume=tmp_path / "parts")
    assert metrics(tmp_path / "parts") == whole


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("environment.tools=[calculator]", "environment.tools: got tools and agent, accepted: exactly one"),
        ("environment.agent=engines_support.nobody", "environment.agent: 'engines_support' has no 'nobody'"),
        ("environment.agent=engines_support.saved", "is not a valid agent"),
        ("environment.args={luck: 1}", "environment.args.luck"),
        ("environment.calls=1", "environment.calls: got 1, but an agent runs its own tools"),
        ("objective.aggregate=constant", "objective.aggregate: given, and reads a sample as one row"),
        ("train.keep=1", "train.keep"),
        ("parallel={kind: fsdp, ranks: 2}", "environment.agent: given, but its calls come whenever they do"),
        ("rollout.engine={use: vllm, url: 'http://a'}", "rollout.engine: got 'vllm'"),
    ],
)
def test_what_does_not_go_along_with_an_agent_is_refused(change: str, told: str):
    with pytest.raises(RecipeError, match=told.replace("[", r"\[")):
        load("tiny_lm_grpo", [*SMALL, change])


def test_args_of_a_recipe_are_the_agents(policy: Any):
    found = agents(agent=partial(solve, extra=9)).rollout(policy, PROMPTS[:1], 1, Generation(12), 5, 3)
    assert 9 in found.replay.tokens[0].tolist()
