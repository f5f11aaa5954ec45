"""Micro-batches are halved when memory runs out, and the run goes on as if they had been so small from the start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowrl.contracts import LogProbs, Prompt, Rollout, Samples, View
from flowrl.core.learning.learner import Learner
from flowrl.core.learning.shrinking import MicroBatch
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.update import Settings, update
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.runs.out_of_memory import savings, tell_remedy

ROWS = 12


class Scores:
    """A policy of one weight a decision whose looks at more than `room` rows run out of memory, half-way through."""

    whole_rows = False

    def __init__(self, room: int) -> None:
        self.weight, self.room, self.looked = nn.Parameter(torch.linspace(0.1, 0.3, 3)), room, []

    def look(self, rollout: Rollout, rows: Tensor, view: View, visit: Callable, **_: Any) -> None:
        self.looked.append(len(rows))
        for column in range(3):
            if len(rows) > self.room and column == 1:
                raise torch.OutOfMemoryError("tried to allocate more")
            x = torch.sin(rows.float() + 1)[:, None]
            visit(LogProbs(rows, torch.tensor([column]), x * self.weight[column]))


def trained(room: int, settings: Settings) -> tuple[Tensor, list[int], dict[str, float]]:
    """The weights after two optimizer steps, the sizes of the looks, and metrics."""
    policy = Scores(room)
    learner = Learner([policy.weight], lr=0.05)
    prompts = [Prompt(str(i), "a") for i in range(2)]
    group = torch.arange(2).repeat_interleave(ROWS // 2)
    samples = Samples([prompts[i] for i in group], group, texts=["a"] * ROWS)
    logp = torch.sin(torch.arange(ROWS).float() + 1)[:, None] * policy.weight.detach()
    rollout = Rollout(samples, logp, torch.ones(ROWS, 3, dtype=torch.bool), None)
    metrics = update(policy, learner, rollout, torch.linspace(-1, 1.5, ROWS), ClippedObjective(0.2, 0.2), settings)
    return policy.weight.detach(), policy.looked, metrics


def test_the_numbers_are_those_of_the_smaller_micro_batch_from_the_start() -> None:
    found, looked, metrics = trained(2, Settings(ROWS // 2, updates=2, shrinking=MicroBatch()))
    expected, plain, _ = trained(ROWS, Settings(ROWS // 2, updates=2, micro_batch=1))
    assert torch.equal(found, expected), "what a failed attempt had added to the gradient is taken back"
    assert looked[:3] == [6, 3, 1]
    assert looked[2:] == plain, "the second update begins as small as the first ended"
    assert metrics["micro_batch"] == 1


def test_it_stops_where_one_row_does_not_fit_and_without_being_asked_to_go_on() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        trained(0, Settings(ROWS // 2, shrinking=MicroBatch()))
    with pytest.raises(torch.OutOfMemoryError):
        trained(2, Settings(ROWS // 2))


def test_a_resumed_run_does_not_try_again() -> None:
    size = MicroBatch()
    trained(3, Settings(ROWS // 2, updates=2, shrinking=size))
    again = MicroBatch()
    again.load_state_dict(size.state_dict())
    _, looked, _ = trained(3, Settings(ROWS // 2, updates=2, shrinking=again))
    assert again.rows == 3
    assert looked == [3, 3, 3, 3]


def test_the_key_takes_auto_where_ranks_hold_all_weights() -> None:
    assert load("quickstart", ["train.micro_batch=auto"]).train.micro_rows is None
    assert load("quickstart", ["train.micro_batch=2"]).train.micro_rows == 2
    with pytest.raises(RecipeError, match="train.micro_batch"):
        load("quickstart", ["train.micro_batch=often"])
    assert load("quickstart", ["train.micro_batch=auto", "parallel.ranks=2"]).train.micro_rows is None
    with pytest.raises(RecipeError, match=r"train.micro_batch: got 'auto', but where ranks share out the weights"):
        load("quickstart", ["train.micro_batch=auto", "parallel.ranks=2", "parallel.kind=fsdp"])


def test_what_ran_out_of_memory_says_which_key_frees_how_much() -> None:
    recipe = load("tiny_flow_grpo", ["train.rollout_batch=12"])  # so that training needs most
    freed = {key: number for key, _, number in savings(recipe, [])}
    assert freed["train.gradient_checkpointing=true"] > 0
    assert freed["dtype.model=bfloat16"] > 0
    assert list(freed.values()) == sorted(freed.values(), reverse=True)
    error = torch.OutOfMemoryError("CUDA out of memory")
    tell_remedy(error, recipe, [])
    first, most = next(iter(freed.items()))
    assert getattr(error, "remedy", "").startswith(f"by the estimate {first} frees ")
    assert most == max(freed.values())
    other = RuntimeError("of another kind")
    tell_remedy(other, recipe, [])
    assert not hasattr(other, "remedy")
