"""Runs that draw more prompts than they train, and samples anew: killed ones go on bit for bit."""

from pathlib import Path

import pytest

from flowrl.planning.costs import arithmetic
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from resume_support import goes_on, metrics, train

SMALL = ["train.prompts=4", "train.group=3", "train.updates=1", "train.iterations=4", "train.micro_batch=null"]
SMALL += ["generation.max_new_tokens=20", "checkpoint.every=1", "prompts.heldout=null", "threads=1"]
BOTH = ["train.expand={decay: 0.0, most: 3}", "train.resample={by: pow, power: 1}"]


def test_a_killed_run_goes_on_with_its_ratio_and_its_draws_bit_for_bit(tmp_path: Path) -> None:
    more = [*SMALL, *BOTH, "rewards={exact: {use: exact_match}}"]
    _, whole = goes_on("tiny_lm_grpo", more, tmp_path)
    seen = [line for line in metrics(whole) if line["kind"] == "train"]
    assert seen[0]["groups/drawn"] == 4 and max(line["groups/drawn"] for line in seen) > 4
    for before, after in zip(seen, seen[1:], strict=False):
        wanted = min(before["groups/drawn"] / before["groups/kept"], 3) if before["groups/kept"] else 3
        assert after["expansion"] == pytest.approx(wanted)
        assert after["groups/drawn"] == -(-4 * wanted // 1)
    assert all(0 < line["resampled"] < 1 for line in seen if line["groups/kept"])


def test_what_keep_leaves_out_is_made_up_for_by_further_prompts(tmp_path: Path) -> None:
    recipe = load("tiny_lm_grpo", ["objective.preset=cppo", "train.prompts=2", "train.group=4"])
    assert recipe.train.keep == 2 and recipe.train.drawn == 4 and arithmetic(recipe).rows == 16
    train("tiny_lm_grpo", [*SMALL, "objective.preset=cppo", "train.group=4", "train.iterations=1"], tmp_path / "run")
    (line,) = (line for line in metrics(tmp_path / "run") if line["kind"] == "train")
    assert line["forwards/rollout"] > 0 and line["active_rows"] <= 0.5


REFUSED = {
    "train.keep_fill": ["train.keep_fill=true"],
    "train.expand": ["train.expand={}", "train.refill=2"],
    "train.resample": ["train.resample={}", "train.store={draw: 2}"],
}


@pytest.mark.parametrize("place", REFUSED)
def test_what_does_not_go_together_is_refused(place: str) -> None:
    with pytest.raises(RecipeError) as refused:
        load("tiny_lm_grpo", [*SMALL, *REFUSED[place]])
    assert refused.value.place == place and "\n" not in str(refused.value)


def test_walks_are_planned_for_the_prompts_that_are_named() -> None:
    with pytest.raises(RecipeError, match=r"train\.expand"):
        load("tiny_flow_grpo", ["train.expand={}"])
    recipe = load("tiny_flow_grpo", ["train.keep=6", "train.keep_fill=true"])
    assert arithmetic(recipe).samples == 2 * arithmetic(load("tiny_flow_grpo", ["train.keep=6"])).samples
