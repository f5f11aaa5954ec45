"""The memory of a language model's recipe from its config, against what a learner and autograd really hold."""

from pathlib import Path

import pytest
import torch

import vision_support as vision
from flowrl.build import build_policy
from flowrl.contracts import Prompt, View
from flowrl.learners import build_learner
from flowrl.planning.costs import plan_for
from flowrl.planning.sizes.language import sizes
from flowrl.planning.sizes.saved import count_saved
from flowrl.planning.sizes.seeing import CONFIGS, media_tokens
from flowrl.planning.sizes.text import describe_sizes
from flowrl.recipe.load import load

SMALL = ["train.prompts=4", "train.group=4", "train.updates=1", "train.micro_batch=8", "generation.max_new_tokens=24"]


@pytest.mark.parametrize("more", [[], ["lora=null", "full=true", "train.ema=0.9"]], ids=["lora", "full"])
def test_weights_optimizer_and_activations_are_those_of_a_run(more):
    recipe = load("tiny_lm_grpo", [*SMALL, *more])
    policy = build_policy(recipe)
    learner = build_learner(recipe, policy)
    prompts = [Prompt("a", "347+285"), Prompt("b", "7*8"), Prompt("c", "12-5"), Prompt("d", "1+1")]
    rollout = policy.rollout(prompts, group_size=2, plan=plan_for(recipe, 0), seed=0)
    found = sizes(recipe, prompts, 24)
    rows = torch.arange(8)
    parameters = [*policy.model.parameters(), *policy.model.buffers()]
    held = []
    with count_saved(parameters) as saved:
        policy.look(rollout, rows, View(), lambda seen: held.append((saved.bytes, seen.logp.sum().backward())))
    learner.step()
    state = learner.optimizer.state_dict()["state"].values()
    moments = sum(v.numel() * v.element_size() for s in state for k, v in s.items() if k.startswith("exp_avg"))
    learning = sum(p.numel() * p.element_size() for p in learner.parameters)
    draw, train = (next(p for p in found.phases if p.name == name) for name in ("rollout", "training"))
    assert train.weights == sum(p.numel() * p.element_size() for p in policy.model.parameters())
    assert (
        draw.optimizer == moments + learning * (recipe.train.ema is not None)
        and train.optimizer == draw.optimizer + learning
    )
    ids = max(len(policy.encode(p.text)) for p in prompts)
    width = rollout.rollout_logp.shape[1]
    longest = found.latent[0] / (ids + width)  # the plan counts the longest prompts and completions
    assert held[0][0] * longest * 0.75 <= train.activations <= held[0][0] * longest**2 * 1.25


@pytest.mark.parametrize(
    "model", [name if "2.5-VL-3B" in name else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)
def test_known_models_that_see_have_the_published_number_of_parameters(model: str, tmp_path: Path):
    """Of the safetensors files on the hub; a picture of 640 x 480 is 23 x 17 tokens, or those of the bounds given."""
    published = {"2-VL-2B": 2_208_985_600, "2-VL-7B": 8_291_375_616, "2.5-VL-3B": 3_754_622_976}
    published |= {"2.5-VL-7B": 8_292_166_656}
    prompts = [Prompt("a", "What is this?", (vision.picture(tmp_path / "p.png", size=(640, 480)),)), Prompt("b", "1+1")]
    recipe = load("tiny_lm_grpo", [f"model={model}"])
    found, bare = sizes(recipe, prompts, 24), sizes(recipe, [Prompt("a", "What is this?")], 24)
    assert sum(found.parameters.values()) == published[model.removeprefix("Qwen/Qwen").removesuffix("-Instruct")]
    assert found.latent[0] == bare.latent[0] + 23 * 17 + 2 and found.phases[1].activations > bare.phases[1].activations
    assert media_tokens(model, {"max_pixels": 50176}, prompts) == 9 * 6 + 2
    assert media_tokens(model, {"max_pixels": 50176}, []) == 64 + 2  # a picture that is as large as it may be
    assert media_tokens(model, {"max_pixels": 50176}, prompts[1:]) == media_tokens(model, {}, []) == 0


def test_the_tokens_of_a_local_models_pictures_are_its_processors(tmp_path: Path):
    place = vision.folder(tmp_path / "model", "qwen2_5_vl")
    prompts = vision.prompts(tmp_path)
    recipe = load("tiny_lm_grpo", [*SMALL, f"model={place}"])
    ids, shown = vision.policy(place).encode.row(prompts[1])
    number = sum(token == vision.IMAGE for token in ids)
    assert media_tokens(str(place), {}, prompts) == number + 2 * 2 and number > 10
    text = describe_sizes(recipe, prompts)
    assert f"prompts with {number + 4} tokens of media" in text and "Qwen2_5_VLForConditionalGeneration" in text


def test_checkpointing_keeps_less_and_a_model_without_a_config_is_told():
    plain, again = (
        sizes(load("tiny_lm_grpo", [*SMALL, f"train.gradient_checkpointing={word}"]), [], 24)
        for word in ("false", "true")
    )
    assert again.phases[-1].activations < 0.7 * plain.phases[-1].activations
    text = describe_sizes(load("grpo_qwen", ["model=nobody/nothing"]), [])
    assert "no config of nobody/nothing is at hand; give its folder" in text and "FLUX" not in text
    assert "keys and values of all rows" in describe_sizes(load("tiny_lm_grpo"), [Prompt("a", "1+1")])
