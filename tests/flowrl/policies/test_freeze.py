"""The key `freeze`: what a training of all weights leaves as it is."""

from collections.abc import Mapping

import pytest
from torch import nn

import vision_support as vision
from flowrl.build import build_policy
from flowrl.planning.sizes.language import sizes
from flowrl.policies import adapters
from flowrl.policies.errors import PolicyError
from flowrl.policies.trainable import freeze
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load

FULL = ["lora=null", "full=true", "threads=1"]


def frozen(modules: Mapping[str, nn.Module]) -> set[str]:
    return {name for module in modules.values() for name, p in module.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("name", sorted(vision.MODELS))
def test_a_tower_stays_and_all_else_learns(name: str):
    model = vision.MODELS[name]()[0]
    modules = {"model": model}
    adapters.train_full(modules)
    freeze(modules, ["tower"])
    inside = {n for n, _ in model.named_parameters() if n.startswith(("model.visual.", "model.vision_tower."))}
    assert inside and frozen(modules) == inside
    freeze(modules, ["match:.*embed_tokens.*"])
    assert {n for n in frozen(modules) - inside} == {n for n, _ in model.named_parameters() if "embed_tokens" in n}


def test_parts_that_are_none_of_a_model_are_refused():
    modules = {"model": vision.MODELS["llava"]()[0]}
    with pytest.raises(PolicyError, match="no weight has such a name; give match:REGEX"):
        freeze(modules, ["match:visual"])
    with pytest.raises(PolicyError, match="nothing of model .* is left that learns"):
        freeze(modules, ["match:.*"])
    with pytest.raises(PolicyError, match="transformers names no tower of it"):
        freeze({"model": modules["model"].model.language_model}, ["tower"])


def test_a_recipe_freezes_the_tower_and_the_plan_knows():
    recipe = load("tiny_vlm_grpo", [*FULL, "freeze=[tower]"])
    policy = build_policy(recipe)
    own = sum(p.numel() for p in policy.trainable())
    whole = sum(p.numel() for p in policy.model.parameters())
    assert 0 < own < whole and any("vision_tower" in name for name in frozen(policy.modules))
    found = sizes(recipe, [], 4)
    assert found is not None and found.trainable == own


@pytest.mark.parametrize(
    ("recipe", "more", "match"),
    [
        ("tiny_vlm_grpo", ["freeze=[tower]"], "freeze: given, but lora trains none"),
        ("tiny_vlm_grpo", [*FULL, "freeze=[towr]"], "accepted: tower or match:REGEX; .*did you mean 'tower'"),
        ("tiny_vlm_grpo", [*FULL, "freeze=['match:(']"], "is no regular expression"),
        ("tiny_flow_grpo", [*FULL, "freeze=[tower]"], "denoiser has no tower"),
    ],
)
def test_a_wrong_value_is_one_line(recipe: str, more: list[str], match: str):
    with pytest.raises(RecipeError, match=match):
        load(recipe, more)
