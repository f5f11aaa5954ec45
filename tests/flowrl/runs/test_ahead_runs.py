"""Texts encoded ahead: encoders come once in several iterations, and nothing else of a run changes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cli_support import quiet
from flowrl.contracts import Prompt
from flowrl.core.expansion import Expansion
from flowrl.core.iterate import iterate
from flowrl.core.ranks import shares
from flowrl.policies.hosting import Hosted
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.recipe.schema import Recipe
from flowrl.runs import ahead, heldout, loop
from flowrl.runs.phasing import Draws
from flowrl.runs.start import run
from resume_support import assert_same_run

ENCODER = "T5EncoderModel"
SMALL = ["train.prompts=2", "train.group=2", "train.updates=1", "train.iterations=4", "sampler.steps=2", "threads=1"]
SMALL += ["train.keep=null", "offload=true", "device=cpu", "checkpoint={every: 1, keep: 9}", "eval.prompts=6"]
SMALL += ["eval.batch=2", "eval.every=null", "eval.steps=2", "eval.at_end=false"]


class Visits:
    """How often the encoder came to the device, by iteration and by evaluation."""

    def __init__(self) -> None:
        self.made, self.training, self.evaluations = 0, list[int](), list[int]()


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Visits]:
    seen, fetch = Visits(), Hosted.fetch

    def fetched(self: Hosted) -> None:
        seen.made += type(self.module()).__name__ == ENCODER and not self.on_device
        fetch(self)

    def counted(work: Any, to: str) -> Any:
        def counting(*args: Any, **options: Any) -> Any:
            before = seen.made
            result = work(*args, **options)
            getattr(seen, to).append(seen.made - before)
            return result

        return counting

    monkeypatch.setattr(Hosted, "fetch", fetched)
    monkeypatch.setattr(loop, "iterate", counted(iterate, "training"))
    monkeypatch.setattr(heldout, "evaluate", counted(heldout.evaluate, "evaluations"))
    yield seen


def go(folder: Path, number: int, resume: bool = False) -> None:
    recipe = load("quickstart", [*SMALL, f"encode_ahead={number}", f"output={folder}"])
    run(recipe, quiet(), resume=folder if resume else None)


def test_encoders_come_once_in_several_iterations_and_nothing_else_changes(tmp_path: Path, visits: Visits) -> None:
    one, two, cut = (tmp_path / name for name in ("one", "two", "cut"))
    go(one, 1)
    assert visits.training == [1] * 4
    (first,) = visits.evaluations  # of three batches, with what is learnt of the encoder
    visits.__init__()
    go(two, 2)
    assert visits.training == [1, 0, 1, 0] and visits.evaluations == [first - 1]
    assert_same_run(two, one)
    shutil.copytree(two, cut)
    shutil.rmtree(cut / "checkpoints" / "00004")
    (cut / "summary.json").unlink()
    visits.__init__()
    go(cut, 2, resume=True)
    assert len(visits.training) == 1 and visits.training[0] > 0
    assert_same_run(cut, two)


# ---------------------------------------------------------------------- what is coming


def recipe_of(*more: str) -> Recipe:
    return load("tiny_lm_grpo", ["train.prompts=3", "train.updates=1", "train.iterations=9", *more])


def prompts(number: int) -> list[Prompt]:
    return [
        Prompt(str(i), f"prompt {'x' * (7 * i % 11)}", meta={"kind": i % 3, "rate": i % 5 / 5}) for i in range(number)
    ]


PASS_RATE = "{kind: pass_rate, key: rate, high: 0.7}"


@pytest.mark.parametrize(
    ("more", "number"),
    [
        ([], 13),  # of which passes end within
        (["prompts.shuffle=false"], 13),
        (["prompts.balance=kind"], 13),
        (["prompts.choose={kind: curriculum, start: 0.4, until: 6}"], 13),
        ([f"prompts.choose={PASS_RATE}"], 13),
        (["phases=[{iterations: 4}, {iterations: 5, overrides: {train.prompts: 4}}]", "train.iterations=null"], 13),
        (["phases=[{iterations: 4}, {iterations: 5, overrides: {prompts.limit: 7}}]", "train.iterations=null"], 13),
        (["prompts.choose=prioritized"], 90),  # within a pass; what the next one draws goes by rewards
    ],
)
def test_the_draws_of_coming_iterations_are_those_that_come(more: list[str], number: int) -> None:
    recipe = recipe_of(*more)
    all_prompts = [prompts(number)[: part.prompts.limit] for part in recipe.parts()]
    whole, one = Draws(recipe, all_prompts), Draws(recipe, all_prompts)
    earlier = {str(i): (i % 10 / 10, 0.0) for i in range(0, number, 2)}
    assert [draws.of(recipe, 0).observe(earlier) for draws in (whole, one)]
    drawn = []
    for i in range(9):
        cursor = whole.of(recipe, i)
        drawn.append(cursor.take(recipe.at(i).train.drawn))
        cursor.observe({p.id: (int(p.id) % 2 / 1.0, 0.0) for p in drawn[-1]})
    for i in range(9):
        assert list(one.coming(2, lambda n: n))[:1] == drawn[i : i + 1]
        cursor = one.of(recipe, i)
        cursor.take(recipe.at(i).train.drawn)
        assert list(one.coming(9, lambda n: n)) == drawn[i:]
        cursor.observe({p.id: (int(p.id) % 2 / 1.0, 0.0) for p in drawn[i]})


def test_further_draws_of_an_iteration_come_first_and_then_go_on_from_there() -> None:
    recipe = recipe_of()
    draws = Draws(recipe, [prompts(40)])
    cursor = draws.of(recipe, 0)
    first, again = cursor.take(3), cursor.take(2)
    found = list(draws.coming(3, lambda n: n))
    assert found[:2] == [first, again]
    cursor.observe({})
    assert [draws.of(recipe, i).take(3) for i in (1, 2)] == found[2:]


def test_each_rank_looks_ahead_to_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("train.prompts=4", "train.pool=2", "prompts.shuffle=false")
    recipe = recipe.model_copy(update={"encode_ahead": 3})
    given, looked = prompts(24), []
    monkeypatch.setattr(ahead, "_looking", lambda recipe, policy, coming: looked.append(coming))
    for rank in (0, 1):
        draws, ranks = Draws(recipe, [given]), SimpleNamespace(rank=rank, size=2)
        ahead.training_ahead(recipe, None, draws, Expansion(0.9, 2.0, ratio=1.5), ranks)
        draws.of(recipe, 0).take(4)
        ahead.batches_ahead(recipe, None, given[:12], 2, ranks)
    drawn = [given[:4], given[4:10], given[10:16]]  # of later iterations 6, as this one had too few
    for rank, coming in enumerate(looked[::2]):
        mine = [draw[i] for draw in drawn for i in shares([p.id for p in draw], 2, 2)[rank]]
        assert list(coming([])) == mine
    for rank, coming in enumerate(looked[1::2]):
        batches = [given[i : i + 2] for i in range(0, 12, 2)][rank::2]
        assert list(coming(batches[0])) == batches[1] + batches[2] and list(coming(batches[2])) == []
        assert list(coming(given[20:])) == []


def test_less_than_one_iteration_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"encode_ahead: got 0, accepted: a whole number >= 1"):
        load("quickstart", ["encode_ahead=0", "offload=true"])
