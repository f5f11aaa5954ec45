"""What a recipe may say of a loss that follows the gradient of the rewards, and what it plans then."""

import importlib
import inspect

import pytest

from flowrl import names
from flowrl.planning.costs import arithmetic, plan_for
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from samplers.visits import Injected, Visited

DRAFT = "tiny_draft"
SRPO = ["objective={preset: srpo}", "sampler.levels={kind: align}"]
MISTAKES = [
    (["rewards.clip.use=jpeg_compressibility", "rewards.clip.args={}"], "rewards.clip.use", "which has no gradient"),
    (["rewards.strict.weight=0.5"], "rewards.strict.use", "follows the rewards' own; accepted: aesthetic"),
    (["rewards.clip.gate={by: strict, least: 1.0}"], "rewards.clip.gate", "a gradient has no gates"),
    (["sampler.levels={kind: uniform}"], "sampler.levels.kind", "walk, tail, leap, bridge or spaced"),
    (["sampler.levels={kind: walk, low: -7}"], "sampler.levels.low", "from 0 to 6, or from -6 to -1"),
    (["sampler.levels={kind: walk, low: -1, number: 2}"], "sampler.levels.number", "from 5 to below 6 are 1"),
    (["sampler.levels={kind: tail, low: 5, high: 4}"], "sampler.levels", "1 <= low <= high"),
    (["sampler.levels={kind: tail, number: 5}"], "sampler.levels.number", "kind 'tail' reads only"),
    (["sampler.tail={solver: dpmpp_2m}"], "sampler.tail.solver", "steps of euler alone"),
    (["sampler.look={guidance_scale: 1.0}"], "sampler.look", "follows the steps as the rollout took them"),
    (["train.keep=2", "train.group=4"], "train.keep", "reads no advantage"),
    (["train.drop_silent=true"], "train.drop_silent", "reads no advantage"),
    (["objective.loss.beta=1"], "objective.loss.beta", "reads only threshold, scale, nested, tau"),
    ([*SRPO, "objective.loss.positive=[good]"], "objective.loss.negative", "give both"),
    (["objective.loss.nested=false", "sampler.levels={kind: bridge}"], "objective.loss.nested", "set it to true"),
    (["objective.loss.nested=true", "sampler.levels={kind: bridge, number: 7}"], "sampler.levels", "of a walk of 6"),
    (["objective.loss.nested=true", "sampler.levels={kind: bridge, number: 1}"], "sampler.levels", "give 2 or more"),
    (["objective.loss.tau=0.1"], "objective.loss.tau", "make no leaps"),
    (["sampler.levels={kind: spaced, through: 0.5}"], "sampler.levels.through", "kind 'spaced' reads only"),
    (["sampler.levels={kind: spaced, stop: 1.5}"], "sampler.levels.stop", "a number in (0, 1]"),
    (["sampler.levels={kind: again}"], "sampler.levels.kind", "tail, leap, bridge or spaced"),
    (
        ["objective={preset: reda}", "sampler.levels={kind: tail}"],
        "objective.loss.target",
        "good samples have",
    ),
    ([SRPO[0], "sampler.levels={kind: align, low: 0.9, high: 0.8}"], "sampler.levels", "low < high"),
]


@pytest.mark.parametrize(("overrides", "place", "words"), MISTAKES, ids=lambda v: v[0] if isinstance(v, list) else v)
def test_a_mistake_is_one_line(overrides: list[str], place: str, words: str):
    with pytest.raises(RecipeError) as caught:
        load(DRAFT, overrides)
    assert caught.value.place == place and words in str(caught.value) and "\n" not in str(caught.value)


def test_states_of_a_walk_are_refused_where_samples_are_noised():
    for kind in ("tail", "again", "leap", "bridge", "spaced", "align"):
        with pytest.raises(RecipeError, match="looks at noised samples"):
            load("quickstart", ["sampler.steps=6", f"sampler.levels={{kind: {kind}}}"])
    for more in ("bias: 2.0", "whole: true"):
        with pytest.raises(RecipeError, match="follows no gradient of rewards"):
            load("quickstart", [f"sampler.levels={{kind: walk, {more}}}"])


def test_rewards_with_a_score_of_pictures_and_texts_say_so():
    for name, entry in names.rewards().items():
        made = getattr(importlib.import_module(entry.module), entry.attribute)
        score = getattr(made, "score", None) if inspect.isclass(made) else None
        takes = list(inspect.signature(score).parameters)[1:] if callable(score) else []
        assert bool(entry.facts.get("differentiable")) == (takes in (["images", "texts"], ["video", "texts"])), name


def test_the_plan_visits_the_walk():
    steps = [plan_for(load(DRAFT), i).levels for i in range(8)]
    assert len(set(steps)) > 2 and all(len(s) == 2 and set(s) <= {Visited(n) for n in range(4)} for s in steps)
    for preset, levels, wanted in (
        ("draft1", "{kind: walk, low: -1}", {(5,)}),
        ("draft_k", "{kind: walk, low: -3}", {(3, 4, 5)}),
        ("alignprop", "{kind: tail, low: 1, high: 2}", {(5,), (4, 5)}),
        ("refl", "{kind: walk, low: -2, number: 1}", {(4,), (5,)}),
    ):
        recipe = load(DRAFT, [f"objective={{preset: {preset}}}", f"sampler.levels={levels}"])
        found = {tuple(c.step for c in plan_for(recipe, i).levels) for i in range(12)}
        assert found == wanted, preset
    leapalign, drtune, draft_lv = (
        load(DRAFT, [f"objective={{preset: {preset}}}", "sampler.levels=null"])
        for preset in ("leapalign", "drtune", "draft_lv")
    )
    assert leapalign.objective.loss is not None and leapalign.objective.loss.tau == 0.1
    begin, middle = plan_for(leapalign, 1).levels
    assert begin.to == middle.step and middle.to == 6 and (begin.through, middle.through) == (0.0, 0.3)
    assert {c.judged for i in range(20) for c in plan_for(drtune, i).levels} == {4, 5}
    assert plan_for(draft_lv, 0).levels == (Visited(5), 5, 5)
    assert all(isinstance(c, Injected) for c in plan_for(load(DRAFT, SRPO), 0).levels)


def test_decodes_and_gradients_of_rewards_are_counted():
    found = arithmetic(load(DRAFT))
    assert (found.rollout_forwards, found.train_forwards, found.decodes, found.reward_gradients) == (288, 96, 48, 48)
    words = ["objective.loss.positive=[good]", "objective.loss.negative=[bad]"]
    both = arithmetic(load(DRAFT, [*SRPO, *words]))
    assert (both.train_forwards, both.decodes, both.reward_gradients) == (96, 96, 192)
    assert arithmetic(load("quickstart")).decodes == 0
    held = arithmetic(load(DRAFT, ["objective.kl=0.5"]))
    assert (found.reference_forwards, held.reference_forwards, held.train_forwards) == (0, 96, 96)
