"""Recipe keys of losses that read a step's noise, and of selected rows: what they accept, build and show."""

from pathlib import Path
from typing import get_args

import pytest

from flowrl import names
from flowrl.build import build_objective
from flowrl.core.objectives import grpo, step_weights
from flowrl.planning.dry_run import describe
from flowrl.planning.walks import check_trained
from flowrl.recipe import presets
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.recipe.schema import ObjectiveKeys
from samplers import renoising, transitions

BASE = str(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")


def test_keys_that_read_noise_are_refused_for_tokens():
    for override, words in (
        ("weight=noise", "weight=none"),
        ("weight=[1.0]", "weight=none"),
        ("ratio=centred", "ratio=plain"),
        ("kl_mask=1e-5", "kl_mask=null"),
        ("{kl: 0.1, kl_kind: exact_dt}", "exact, k1, k2, k3, abs, forward or jsd"),
    ):
        given = f"objective={override}" if override.startswith("{") else f"objective.{override}"
        with pytest.raises(RecipeError) as caught:
            load("tiny_lm_grpo", [given])
        assert words in str(caught.value) and "`generation` makes tokens" in str(caught.value)


def test_a_share_of_tokens_by_entropy_is_built_and_shown_and_refused_for_steps():
    recipe = load("tiny_lm_grpo", ["objective.entropy_share=0.2"])
    assert build_objective(recipe).entropy_share == 0.2
    assert "policy gradient from the top 0.2 of tokens by entropy" in describe(recipe)
    assert build_objective(load("tiny_lm_grpo", [])).entropy_share is None
    with pytest.raises(RecipeError, match=r"^objective.entropy_share: got 0.2, .* are denoising steps.*=null"):
        load(BASE, ["objective.entropy_share=0.2"])
    for value in ("0", "1.5", "-0.1"):
        with pytest.raises(RecipeError, match=r"^objective.entropy_share: .*a number > 0 and <= 1, or null"):
            load("tiny_lm_grpo", [f"objective.entropy_share={value}"])


def test_factors_are_as_many_as_trained_steps():
    for overrides, number in (
        (["sampler.window={kind: all}"], 5),
        ([], 2),
        (
            [
                "sampler.window={kind: all}",
                "sampler.tree={kind: branch, splits: [0, 2, 3], prune: [4]}",
                "train.group=8",
            ],
            4,
        ),
    ):
        check_trained(load(BASE, [*overrides, f"objective.weight={[1.0] * number}"]))
        with pytest.raises(RecipeError, match=rf"^objective.weight: got {number + 1} factors, .* {number} steps"):
            check_trained(load(BASE, [*overrides, f"objective.weight={[1.0] * (number + 1)}"]))
    check_trained(load(BASE, ["objective.weight=noise"]))


def test_the_schema_knows_whether_means_are_kept():
    for override in ("ratio=plain", "ratio=centred", "kl_mask=1e-5"):
        recipe = load(BASE, [f"objective.{override}"])
        assert recipe.objective.centred == build_objective(recipe).view.centred == (override != "ratio=plain")
    assert build_objective(load(BASE, ["objective.weight=[1, 2]"])).weight == (1.0, 2.0)


def test_choices_are_those_of_the_modules_that_implement_them():
    literal, _ = get_args(ObjectiveKeys.model_fields["weight"].annotation)
    assert get_args(literal) == step_weights.KINDS
    assert get_args(ObjectiveKeys.model_fields["ratio"].annotation) == grpo.RATIOS
    steps = [f for module in (renoising, transitions) for f in vars(module).values() if callable(f)]
    assert {f.__name__ for f in steps if getattr(f, "unit_variance", False)} == {
        name for name, entry in names.steps().items() if entry.facts.get("unit_variance")
    }


def test_dry_run_shows_weights_ratio_and_selection():
    text = describe(load(BASE, ["objective={preset: guard, clip: 2e-6}"]))
    assert "guard: token ratio (centred), clip -2e-06 +2e-06, weights inverse_dt, decision_mean" in text
    text = describe(load(BASE, ["objective={kl_mask: 1e-5, weight: [1, 0.5]}", "train.keep=4", "objective.kl=0.1"]))
    assert "token ratio, masked beyond KL 1e-05, weights 1 0.5, KL 0.1 (exact)" in text
    assert "trains only the best and the worst 2 of the rows" in text and "training at most" in text
    assert max(len(line) for line in text.split("\n")) <= 120


def test_every_preset_has_a_text_that_ends_in_its_own_row():
    found = presets.texts()
    assert tuple(found) and set(found) == set(presets.PRESETS)
    assert found["guard"].startswith("grpo, centred ratio") and found["guard"].endswith("For denoising steps.")
    assert all("\n" not in text and "arXiv:" in text for text in found.values())
