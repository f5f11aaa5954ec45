"""The memory of a language model's recipe from its config, against what a learner and autograd really hold."""

import pytest
import torch

from flowrl.build import build_policy
from flowrl.contracts import Prompt, View
from flowrl.learners import build_learner
from flowrl.planning.costs import plan_for
from flowrl.planning.sizes.language import sizes
from flowrl.planning.sizes.saved import count_saved
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


def test_checkpointing_keeps_less_and_a_model_without_a_config_is_told():
    plain, again = (
        sizes(load("tiny_lm_grpo", [*SMALL, f"train.gradient_checkpointing={word}"]), [], 24)
        for word in ("false", "true")
    )
    assert again.phases[-1].activations < 0.7 * plain.phases[-1].activations
    text = describe_sizes(load("grpo_qwen"), [])
    assert "no config of Qwen/Qwen2.5-3B-Instruct is at hand; give its folder" in text and "FLUX" not in text
    assert "keys and values of all rows" in describe_sizes(load("tiny_lm_grpo"), [Prompt("a", "1+1")])
