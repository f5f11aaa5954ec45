"""What a recipe may say of a loss of noised samples, and what it plans then."""

from collections.abc import Sequence

import pytest

from flowrl.planning.costs import arithmetic, plan_for
from flowrl.planning.dry_run import describe
from flowrl.reading.inputs import planned_prompts
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.recipe.schema import Recipe


def nft(overrides: Sequence[str] = ()) -> Recipe:
    """The quickstart with four steps and two levels."""
    return load("quickstart", ["sampler.steps=4", "sampler.levels.number=2", *overrides])


MISTAKES = [
    (["objective.preset=flow_dpo", "objective.loss={kind: crd}", "train.old=null"], "train.old", "of an older copy"),
    (["objective.loss.clip=0.1"], "objective.loss.clip", "reads only beta, adv_clip, adv_mode"),
    (["objective.loss.beta=0"], "objective.loss.beta", "got 0"),
    (["sampler.levels={kind: uniform, low: 0.9, high: 0.4}"], "sampler.levels", "low < high"),
    (["sampler.levels={kind: walk, number: 5}"], "sampler.levels.number", "from 0 to below 4 are 4"),
    (["sampler.levels={kind: walk, low: 0.5}"], "sampler.levels.low", "a whole number from 0 to 4"),
    (["sampler.levels={kind: uniform, std: 1.0}"], "sampler.levels.std", "kind 'uniform' reads only"),
    (["sampler.tree={kind: per_step}"], "sampler.tree", "come from the ODE"),
    (["sampler.tail={ratio: 0.5}"], "sampler.tail", "none draws"),
    (["sampler.look={height: 64}"], "sampler.look.height", "contain guidance, cfg, negative_prompt"),
    (["sampler.look={guidance_scale: -1.0}"], "sampler.look.guidance_scale", "a number >= 0"),
    (["objective.ratio=centred"], "objective.ratio", "about log-probabilities"),
    (["train.pairs=2"], "train.pairs", "loss 'nft' takes none"),
    (["objective.loss={kind: awm, pull: 0}"], "objective.loss.pull", "training collapses"),
    (["objective.loss={kind: flow_dpo}", "train.pairs=7"], "train.pairs", "at most 6"),
]


@pytest.mark.parametrize(("overrides", "place", "words"), MISTAKES, ids=lambda v: v[0] if isinstance(v, list) else v)
def test_a_mistake_is_one_line(overrides: list[str], place: str, words: str):
    with pytest.raises(RecipeError) as caught:
        nft(overrides)
    assert caught.value.place == place and words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key",
    [
        "sampler.levels={kind: walk}",
        "sampler.look={guidance_scale: 1.0}",
        "train.old=0.1",
        "train.sample_old=true",
        "train.pairs=2",
    ],
)
def test_keys_that_no_clipped_loss_reads_are_refused(key: str):
    with pytest.raises(RecipeError, match="the objective noises no finished samples"):
        load("tiny_flow_grpo", [key])


def test_a_token_model_has_no_samples_to_noise():
    with pytest.raises(RecipeError, match="objective.loss: got 'nft', a loss of noised samples"):
        load("tiny_lm_grpo", ["objective.loss={kind: nft}"])


def test_the_plan_is_the_ode_and_its_levels_repeat():
    recipe = nft()
    plans = [plan_for(recipe, i) for i in range(3)]
    assert all(plan.stochastic == () and len(plan.levels) == 2 for plan in plans)
    assert len({plan.levels for plan in plans}) == 3 and plan_for(nft(), 1) == plans[1]
    assert plan_for(nft(["seed=1"]), 1) != plans[1]
    walked = plan_for(nft(["sampler.levels={kind: walk, number: 2, low: 1}", "sampler.tail={}"]), 0)
    assert set(walked.levels) <= {1, 2, 3} and walked.solver == "dpmpp_2m"


def test_forwards_are_counted_at_most():
    found = arithmetic(nft())
    assert (found.rollout_forwards, found.train_forwards, found.reference_forwards) == (768, 192, 192)
    both = arithmetic(nft(["objective.kl=0.1", "train.keep=null"]))
    assert (both.train_forwards, both.reference_forwards) == (384, 768)
    dpo = arithmetic(nft(["objective.loss={kind: flow_dpo}", "train.pairs=2", "train.keep=null"]))
    assert (dpo.train_forwards, dpo.reference_forwards) == (128, 128)


def test_a_loss_of_a_preset_keeps_what_the_recipe_does_not_say():
    assert nft(["objective.loss.beta=0.1"]).objective.loss.given == {"beta": 0.1}
    other = nft(["objective.loss={kind: awm, pull: 2.0}"]).objective.loss
    assert (other.kind, other.given) == ("awm", {"pull": 2.0})


def test_a_look_takes_arguments_that_the_pipeline_takes():
    with pytest.raises(RecipeError, match=r"sampler.look.cfg_scale: got 2.0, but FluxPipeline takes no 'cfg_scale'"):
        planned_prompts(nft(["sampler.look={cfg_scale: 2.0}"]))
    assert "looks       with guidance_scale 1.0, unlike the rollout" in describe(
        nft(["sampler.look={guidance_scale: 1.0}"])
    )
