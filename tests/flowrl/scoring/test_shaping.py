"""Scores of completions reshaped by length, end and group: published numbers, by hand, and what a recipe may say."""

import pytest
import torch

import golden
from flowrl.contracts import Prompt, Samples
from flowrl.core.advantages.combined import advantages
from flowrl.recipe.base import Strict
from flowrl.recipe.keys.rewards import SHAPE_KEYS, Gate, RewardSpec, Shape
from flowrl.recipe.load import load
from flowrl.scoring import shaping
from flowrl.scoring.gates import counted_rewards

NAN = float("nan")


def of(method: str) -> list:
    return golden.cases("objectives/llm_reward.json", where=lambda case: case["method"] == method)


@pytest.mark.parametrize("case", of("reward.stop_properly"))
def test_stop_properly_of_openrlhf(case):
    rewards, cut = torch.tensor(case["inputs"]["rewards"]), torch.tensor(case["inputs"]["truncated"])
    golden.check({"rewards": shaping.stop_properly(rewards, cut, factor=case["params"]["coef"])}, case)


@pytest.mark.parametrize("case", golden.cases("direct/rewards_dast.json"))
def test_difficulty_adaptive_length_of_ui_r1(case):
    params, rewards = case["params"], torch.tensor(case["inputs"]["reward"])
    group = torch.arange(len(rewards)) // params["num_generations"]
    how = {"full": params["full_reward"], "slope": params["a"], "offset": params["b"]}
    got = shaping.difficulty_length(rewards, torch.tensor(case["inputs"]["length"]), group, **how)
    golden.check({"reward_out": got}, case)


@pytest.mark.parametrize("case", of("t_grpo.reward_advantage"))
def test_bonuses_of_video_r1(case):
    params, x = case["params"], case["inputs"]
    accuracy, form = torch.tensor(x["rewards_per_func"]).unbind(1)
    group, lengths = torch.zeros(len(accuracy), dtype=torch.int64), torch.tensor(x["completion_length"])
    rewards = accuracy + form
    if params["temporal"]:
        how = {"bonus": params["bonus"], "share": params["ratio"]}
        shuffled = torch.tensor(x["shuffled_accuracy"]).mean()[None]
        rewards = rewards + shaping.temporal_bonus(accuracy, shuffled, group, **how) - accuracy
    if params["len_control"]:
        low, high = params["len_range"]
        how = {"bonus": params["len_bonus"], "shortest": low, "longest": high}
        rewards = rewards + shaping.length_bonus(accuracy, lengths, group, **how) - accuracy
    adv = advantages({"r": rewards}, group, weights={"r": 1.0}, clip=None, unbiased=True, eps=1e-4)
    golden.check({"rewards": rewards, "advantages": adv}, case)


def test_a_bonus_is_that_of_its_group_and_what_has_no_score_keeps_none():
    scores, lengths = torch.tensor([1.0, 1.0, 1.0, 0.0, NAN]), torch.tensor([400, 900, 400, 400, 400])
    group = torch.tensor([5, 5, 2, 2, 2])
    got = shaping.length_bonus(scores, lengths, group)
    torch.testing.assert_close(got, torch.tensor([1.2, 1.0, 1.0, 0.0, NAN]), equal_nan=True)
    got = shaping.difficulty_length(torch.tensor([1.0, NAN, 0.0]), torch.tensor([10, 99, 30]), torch.tensor([3, 3, 3]))
    # p = 1/2, budget = 20 without the third: 1 + 0.5 * 0.5 + 0.5, and min(0.9 * 0.5 - 0.1, -0.1)
    torch.testing.assert_close(got, torch.tensor([1.75, NAN, -0.1]), equal_nan=True)
    cosine = shaping.cosine_length(torch.tensor([1.0, 1.0, 0.0, 1.0, NAN]), torch.tensor([0, 50, 0, 400, 3]), limit=100)
    torch.testing.assert_close(cosine, torch.tensor([1.0, 0.75, -0.5, 0.5, NAN]), equal_nan=True)


def test_scores_are_reshaped_before_they_are_gated_and_not_in_an_evaluation():
    prompts = [Prompt(str(i), "") for i in range(3)]
    cut = torch.tensor([True, False, True])
    samples = Samples(prompts, torch.zeros(3).long(), texts=["a"] * 3, lengths=torch.ones(3).long(), truncated=cut)
    specs = {
        "right": RewardSpec(use="exact_match", shape=Shape(kind="stop_properly", factor=0.5)),
        "thought": RewardSpec(use="text_judge", gate=Gate(by="right", least=None)),
    }
    scores = {"right": torch.tensor([1.0, 1.0, NAN]), "thought": torch.tensor([0.8, 0.6, 0.4])}
    found = counted_rewards(specs, scores, prompts, samples.group, samples)
    torch.testing.assert_close(found.rewards["right"], torch.tensor([0.5, 1.0, NAN]), equal_nan=True)
    torch.testing.assert_close(found.rewards["thought"], torch.tensor([0.4, 0.6, NAN]), equal_nan=True)
    assert scores["right"][0] == 1.0
    assert counted_rewards(specs, scores, prompts).rewards["right"][0] == 1.0
    with pytest.raises(ValueError, match="this model does not say"):
        shaping.shape(scores["right"], Samples(prompts, samples.group), "length_bonus", {})


def test_keys_of_shapes_are_the_arguments_of_their_functions():
    assert set(SHAPE_KEYS) == set(shaping.SHAPES) and issubclass(Shape, Strict)
    for kind, (function, reads) in shaping.SHAPES.items():
        names = function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount]
        assert names == ("scores", *reads, *names[1 + len(reads) :])
        assert set(SHAPE_KEYS[kind]) == set(names[1 + len(reads) :])


@pytest.mark.parametrize(
    ("recipe", "name", "value", "text"),
    [
        ("tiny_lm_grpo", "right", "{kind: length_bonus, factor: 1}", "factor.*'length_bonus' does not read"),
        ("tiny_lm_grpo", "right", "{kind: cosine_length}", "limit.*missing"),
        ("tiny_lm_grpo", "right", "{kind: length_bonus, shortest: 9, longest: 3}", "at most"),
        ("tiny_flow_grpo", "shapes", "{kind: stop_properly}", "only completions have a length"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(recipe, name, value, text):
    reward = next(iter(load(recipe).rewards))
    with pytest.raises(ValueError, match=text):
        load(recipe, [f"rewards.{reward}.shape={value}"])
