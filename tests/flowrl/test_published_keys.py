"""What published code does beside its paper, as keys: the last step's noise, silent rows, precision, strides."""

import json
from pathlib import Path

import pytest
import torch

from cli_support import quiet
from flowrl.build import build_policy
from flowrl.contracts import Prompt
from flowrl.planning import describe, plan_for
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.run import run
from samplers.trees import PerStep, picture

BASE = str(Path(__file__).parents[1] / "recipes" / "quickstart.yaml")
SMALL = ["train.prompts=2", "train.group=4", "train.updates=1", "train.iterations=1"]
SMALL += ["eval.at_start=false", "eval.at_end=false", "eval.every=null"]
LAST = "sampler.window={kind: all, draw_last: true}"


def test_the_last_step_draws_and_is_not_trained():
    recipe = load(BASE, [*SMALL, LAST])
    plan, without = plan_for(recipe, 0), plan_for(load(BASE, [*SMALL, "sampler.window={kind: all}"]), 0)
    assert plan.stochastic == (0, 1, 2, 3, 4, 5) and plan.trained == without.trained == (0, 1, 2, 3, 4)
    assert picture(plan.tree(4)) == "●●●●●o" and "o draws noise" in describe(recipe)
    policy, prompts = build_policy(recipe), [Prompt("a", "a red circle")]
    drawn, still = (policy.rollout(prompts, group_size=4, plan=p, seed=0) for p in (plan, without))
    assert torch.equal(drawn.behave, still.behave)  # the decisions are those of the ODE's last step ...
    moved = (drawn.samples.images - still.samples.images).abs().mean()
    assert moved > 1e-3  # ... and the pictures are not


@pytest.mark.parametrize(
    "more",
    [
        ["sampler.window={kind: all, skip_last: 0, draw_last: true}"],
        [LAST, "sampler.tail={solver: dpmpp_2m}"],
        [LAST, "sampler.tree={kind: per_step}"],
    ],
)
def test_noise_at_the_last_step_is_refused_where_something_else_happens_there(more: list[str]):
    with pytest.raises(RecipeError, match=r"sampler\.window\.draw_last: got true"):
        load(BASE, more)


def test_published_recipes_name_the_published_behaviour():
    last = {"flow_grpo_sd3", "flow_grpo_flux", "flow_grpo_wan", "grpo_guard_sd3"}
    silent = {"flow_grpo_sd3", "flow_grpo_fast_sd3", "flow_grpo_wan", "grpo_guard_sd3"}
    ramp = last | silent | {"flow_cps_flux"}
    for path in (Path(__file__).parents[2] / "recipes").glob("*.yaml"):
        recipe, name = load(str(path)), path.stem
        assert bool(recipe.sampler.window.draw_last) == (name in last), name
        assert recipe.train.drop_silent == (name in silent), name
        assert (recipe.train.ema_ramp == "steps") == (name in ramp), name


def metrics_of(folder: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return next(line for line in lines if "loss" in line)


@pytest.mark.parametrize("more", [[], ["objective.kl=0.01"], ["objective.preset=guard"]])
def test_log_probs_of_double_precision_train(tmp_path: Path, more: list[str]):
    found = []
    for precision in ("float64", "float32"):
        recipe = load(BASE, [*SMALL, *more, f"dtype.logp={precision}", f"output={tmp_path / precision}"])
        run(recipe, quiet())
        found.append(metrics_of(tmp_path / precision))
    assert found[0]["grad_norm"] == pytest.approx(found[1]["grad_norm"], rel=1e-3)
    assert found[0]["replay_gap_max"] <= max(found[1]["replay_gap_max"], 1e-9)


def test_a_stride_that_ends_in_a_shared_step_still_gives_its_picture(tmp_path: Path):
    """The last of three draws leaves four levels: the coarse table ends with the step that both strides share."""
    tree = PerStep(6, (0, 1, 2), strides=(1, 2)).tree(4)
    finished = [leaf for part in tree.passes() for leaf in part.leaves]
    assert sorted(finished) == sorted(tree.leaves)
    more = ["sampler.window={kind: first, size: 3}", "sampler.tree={kind: per_step, strides: [1, 2]}"]
    more += [f"output={tmp_path / 'run'}"]
    run(load(BASE, [*SMALL, *more]), quiet())
    assert metrics_of(tmp_path / "run")["grad_norm"] > 0
