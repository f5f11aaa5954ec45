"""sampler.tree: what a recipe's keys become, what is refused, and that what is accepted walks in every iteration."""

from pathlib import Path
from typing import Any, get_args

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings

from flowrl.planning.costs import arithmetic
from flowrl.planning.dry_run import describe
from flowrl.planning.walks import walk
from flowrl.recipe.checks.trees import TREE_KEYS, check_tree
from flowrl.recipe.checks.windows import check_window
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.keys.sampling import TreeKeys
from flowrl.recipe.load import load
from flowrl.recipe.schema import Recipe
from samplers.trees import Branching, PerStep

BASE = str(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")
TWENTY = ("sampler.steps=20", "sampler.share_noise=false", "train.group=16", "train.iterations=200")


def loaded(tree: str, *overrides: str, window: str = "{kind: all, skip_last: 0}") -> Recipe:
    return load(BASE, [*TWENTY, f"sampler.window={window}", f"sampler.tree={tree}", *overrides])


def branching(recipe: Recipe, iteration: int = 0) -> Branching:
    plan = walk(recipe, iteration)
    assert isinstance(plan, Branching)
    return plan


def test_kinds_and_keys_are_those_of_the_schema():
    assert set(TREE_KEYS) == set(get_args(TreeKeys.model_fields["kind"].annotation))
    assert {"kind", *(name for keys in TREE_KEYS.values() for name in keys)} == set(TreeKeys.model_fields)


def test_branchgrpo_costs_what_it_says():
    recipe = loaded("{kind: branch, splits: [0, 3, 6, 9]}", "train.prompts=2", "train.updates=1")
    plan = branching(recipe)
    assert (plan.splits, plan.widths, plan.stochastic) == ((0, 3, 6, 9), (2, 2, 2, 2), tuple(range(20)))
    found = arithmetic(recipe)
    assert (found.rollout_forwards, found.samples, found.rows) == (2 * 203, 2 * 16, 2 * 30)
    assert "8● 8● 8● 16●" in describe(recipe)


def test_tempflow_costs_what_it_says():
    more = ("sampler.steps=10", "train.group=6", "train.prompts=2", "train.updates=1")
    recipe = loaded("{kind: per_step}", *more, window="{kind: all}")
    found = arithmetic(recipe)
    assert (found.rollout_forwards, found.train_forwards, found.samples, found.rows) == (2 * 279, 2 * 9, 108, 108)


def test_g2rpo_trains_a_state_once():
    recipe = loaded(
        "{kind: per_step, strides: [1, 2]}", "sampler.steps=16", "train.group=12", window="{kind: first, size: 8}"
    )
    plan = walk(recipe, 0)
    assert isinstance(plan, PerStep) and (plan.steps, plan.strides) == (tuple(range(8)), (1, 2))
    found, prompts = arithmetic(recipe), recipe.train.prompts
    assert (found.samples, found.rows, found.train_forwards) == (prompts * 192, prompts * 96, prompts * 8)


def test_splits_move_with_the_window():
    window = "{kind: progressive, size: 4, interval: 10, high: 18}"
    recipe = loaded("{kind: branch, splits: [0, 2], splits_from: window, widths: [4, 4]}", window=window)
    assert [branching(recipe, i).splits for i in (0, 10, 55)] == [(0, 2), (1, 3), (5, 7)]
    assert all(branching(recipe, i).stochastic[0] == branching(recipe, i).splits[0] for i in range(200))


def test_pruned_steps_slide_and_end():
    tree = (
        "{kind: branch, splits: [0, 3, 6, 9], prune: [14, 15, 16], prune_interval: 30, prune_stop: 12, prune_until: 99}"
    )
    recipe = loaded(tree)
    left = [sorted(set(range(20)) - set(branching(recipe, i).trained)) for i in (0, 29, 30, 60, 99, 100)]
    assert left == [[14, 15, 16], [14, 15, 16], [13, 14, 15], [12, 13, 14], [12, 13, 14], []]
    assert branching(recipe).stochastic == tuple(range(20))


def test_a_fraction_trains_some_of_what_is_drawn():
    recipe = loaded("{kind: branch, splits: [0, 9], widths: 4}", window="{kind: fraction, share: 0.5}")
    for iteration in range(5):
        plan = branching(recipe, iteration)
        assert plan.stochastic == tuple(range(19)) and len(plan.trained) == 9


@pytest.mark.parametrize(
    ("tree", "overrides", "place", "words"),
    [
        ("{kind: branch}", [], "sampler.tree.splits", "needs it"),
        ("{kind: branch, splits: [0], anchors: 2}", [], "sampler.tree.anchors", "reads only splits"),
        ("{kind: per_step, credit: uniform}", [], "sampler.tree.credit", "reads only anchors"),
        ("{kind: branch, splits: []}", [], "sampler.tree.splits", "rise without repeats"),
        ("{kind: branch, splits: [3, 3]}", [], "sampler.tree.splits", "rise without repeats"),
        ("{kind: branch, splits: [6, 3]}", [], "sampler.tree.splits", "rise without repeats"),
        ("{kind: branch, splits: [-1, 3]}", [], "sampler.tree.splits", "rise without repeats"),
        ("{kind: branch, splits: [0, 20]}", [], "sampler.tree.splits", "at steps 0 to 19 alone"),
        ("{kind: branch, splits: [0, 3], widths: [2]}", [], "sampler.tree.widths", "2 of them"),
        ("{kind: branch, splits: [0, 3], widths: 1}", [], "sampler.tree.widths", ">= 2"),
        ("{kind: branch, splits: [0, 3], widths: 3}", [], "train.group", "3 x 3 branches make 9"),
        ("{kind: branch, splits: [0, 3], prune_stop: 3}", [], "sampler.tree.prune", "nothing to prune"),
        ("{kind: branch, splits: [0, 3], prune_until: 3}", [], "sampler.tree.prune", "nothing to prune"),
        ("{kind: branch, splits: [0, 3], prune: [5, 4]}", [], "sampler.tree.prune", "rise without repeats"),
        ("{kind: branch, splits: [0, 3], prune: [20]}", [], "sampler.tree.prune", "of 0 to 19"),
        (
            "{kind: branch, splits: [0, 3], prune: [5], prune_stop: 6}",
            [],
            "sampler.tree.prune_stop",
            "at most the first",
        ),
        (f"{{kind: branch, splits: [0, 3], prune: {list(range(20))}}}", [], "sampler.tree.prune", "without a step"),
        ("{kind: per_step, anchors: 3}", [], "sampler.tree.anchors", "accepted: 1, 2, 4, 8"),
        ("{kind: per_step, anchors: 16}", [], "sampler.tree.anchors", "two or more"),
        ("{kind: per_step, anchors: 2}", ["sampler.share_noise=true"], "sampler.share_noise", "would be the same"),
        ("{kind: per_step, strides: []}", [], "sampler.tree.strides", "different whole numbers"),
        ("{kind: per_step, strides: [1, 1]}", [], "sampler.tree.strides", "different whole numbers"),
        ("{kind: per_step, strides: [0, 1]}", [], "sampler.tree.strides", "different whole numbers"),
        ("{kind: per_step, strides: [1, 2]}", [], "sampler.window.skip_last", "need 3 more steps"),
        ("{kind: per_step}", ["sampler.tail={ratio: 0.5}"], "sampler.tail", "draws at every step"),
    ],
)
def test_a_tree_that_cannot_work_is_refused_in_one_line(tree: str, overrides: list[str], place: str, words: str):
    with pytest.raises(RecipeError) as caught:
        loaded(tree, *overrides)
    message = str(caught.value)
    assert (caught.value.place, "\n" in message) == (place, False), message
    assert words in message


@pytest.mark.parametrize(
    ("window", "splits_from", "place"),
    [
        ("{kind: progressive, size: 4, interval: 5}", "start", "sampler.tree.splits"),
        ("{kind: random_window, size: 4}", "start", "sampler.tree.splits"),
        ("{kind: frozen, low: 1, size: 8}", "start", "sampler.tree.splits"),
        ("{kind: random, size: 4}", "window", "sampler.tree.splits_from"),
        ("{kind: progressive, size: 3, interval: 5}", "window", "sampler.tree.splits"),
    ],
)
def test_splits_stay_inside_the_window(window: str, splits_from: str, place: str):
    with pytest.raises(RecipeError) as caught:
        loaded(f"{{kind: branch, splits: [0, 3], splits_from: {splits_from}}}", window=window)
    assert caught.value.place == place


@pytest.mark.parametrize(
    ("window", "prune"),
    [
        ("{kind: first, size: 2}", "prune: [0, 1]"),
        ("{kind: frozen, low: 3, size: 2}", "prune: [3, 4]"),
        ("{kind: progressive, size: 2, interval: 5}", "prune: [7, 8]"),
        ("{kind: random_window, size: 2}", "prune: [7, 8]"),
        ("{kind: fraction, share: 0.2}", "prune: [1, 7, 9]"),  # 0.2 of 19 steps are 3
    ],
)
def test_pruning_never_leaves_an_iteration_empty(window: str, prune: str):
    """Also where it would so in some iteration alone; one step fewer is accepted."""
    splits = "3" if "frozen" in window else "0"
    tree = f"{{kind: branch, splits: [{splits}], {prune}}}"
    if "progressive" in window or "random" in window:
        tree = f"{{kind: branch, splits: [0], splits_from: window, {prune}}}"
    with pytest.raises(RecipeError, match="without a step to train"):
        loaded(tree, window=window)
    last = prune.rpartition(",")[2]
    loaded(tree.replace(f",{last}", "]"), window=window)


def some(**values: st.SearchStrategy) -> st.SearchStrategy:
    """A mapping with any of these keys."""
    return st.fixed_dictionaries({}, optional=values)


def steps(low: int = 0, high: int = 8) -> st.SearchStrategy:
    return st.integers(low, high)


WINDOWS = st.one_of(
    st.builds(lambda **k: {"kind": "all"} | k, skip_last=steps(0, 4)),
    st.builds(lambda **k: k, kind=st.sampled_from(["first", "frozen", "random", "random_window"]), size=steps(1, 8)),
    st.builds(lambda **k: {"kind": "progressive"} | k, size=steps(1, 6), interval=steps(1, 3), stride=steps(0, 3)),
    st.builds(lambda **k: {"kind": "fraction"} | k, share=st.floats(0.1, 1.0)),
)
BRANCH = st.builds(
    lambda splits, more: {"kind": "branch", "splits": sorted(splits)} | more,
    st.sets(steps(0, 7), min_size=1, max_size=2),
    some(
        splits_from=st.sampled_from(["start", "window"]),
        prune=st.sets(steps(0, 8), min_size=1, max_size=5).map(sorted),
        prune_interval=steps(1, 3),
        prune_stop=steps(0, 4),
        credit=st.sampled_from(["uniform", "path_probability"]),
    ),
)
PER_STEP = some(anchors=steps(1, 4), strides=st.lists(steps(1, 3), max_size=3), per_anchor=st.booleans()).map(
    lambda more: {"kind": "per_step"} | more
)
PLAIN = load(BASE).model_dump(by_alias=True)


@settings(max_examples=300, deadline=None)
@given(WINDOWS, st.one_of(BRANCH, PER_STEP), st.booleans(), st.integers(0, 30))
def test_what_is_accepted_walks_in_every_iteration(
    window: dict[str, Any], tree: dict[str, Any], share_noise: bool, iteration: int
):
    sampler = PLAIN["sampler"] | {"steps": 9, "window": window, "tree": tree, "share_noise": share_noise}
    recipe = Recipe(**(PLAIN | {"sampler": sampler, "train": PLAIN["train"] | {"group": 8}}))
    assume(not list(check_window(recipe)) and not list(check_tree(recipe)))
    grown = walk(recipe, iteration).tree(8)
    assert grown.rows and grown.leaves
    if isinstance(recipe.sampler.tree, TreeKeys) and recipe.sampler.tree.kind == "branch":
        assert len(grown.leaves) == 8
