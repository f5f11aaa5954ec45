"""What published code does beside its paper, as keys: the last step's noise, silent rows, precision, strides."""

import json
from pathlib import Path

import pytest
import torch

from cli_support import quiet
from flowrl.build import build_policy
from flowrl.contracts import Prompt
from flowrl.core.advantages.rows import row_advantages
from flowrl.core.selection import extremes
from flowrl.planning.costs import plan_for
from flowrl.planning.dry_run import describe
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from flowrl.runs.start import run
from samplers.trees import PerStep, picture

BASE = str(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")
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
    assert torch.equal(drawn.rollout_logp, still.rollout_logp)  # the decisions are those of the ODE's last step ...
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
    last |= {"flux_24gb", "flux_32gb", "flux_80gb", "sd35_24gb", "wan13_24gb"}
    silent |= {"sd35_24gb", "wan13_24gb"}
    ramp = last | silent | {"flow_cps_flux", "flow_dpo_sd3", "flow_dpo_wan", "flow_rwr_wan", "dgpo_sd3", "opd_sd35"}
    for path in (Path(__file__).parents[3] / "recipes").glob("*.yaml"):
        recipe, name = load(str(path)), path.stem
        assert bool(recipe.sampler.window.draw_last) == (name in last), name
        assert recipe.train.drop_silent == (name in silent | {"mini_o3"}), name
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


def test_random_steps_come_from_a_list_too():
    """Flow-Factory lists the steps; here those of 1, 2 and 5, two an iteration."""
    recipe = load(BASE, ["sampler.steps=8", "sampler.window={kind: random, size: 2, steps: [1, 2, 5]}"])
    drawn = {plan_for(recipe, i).stochastic for i in range(60)}
    assert drawn == {(1, 2), (1, 5), (2, 5)}


@pytest.mark.parametrize(
    ("window", "place", "says"),
    [
        ("{kind: random, size: 2, steps: [2, 1]}", "steps", "rise without repeats"),
        ("{kind: random, size: 2, steps: [1, 6]}", "steps", "of 0 to 5"),
        ("{kind: random, size: 1, steps: []}", "steps", "rise"),
        ("{kind: random, size: 3, steps: [1, 2]}", "size", "holds 2"),
        ("{kind: random, size: 1, steps: [1, 2], low: 1}", "low", "says which steps"),
        ("{kind: random_window, size: 1, steps: [1, 2]}", "steps", "reads only"),
    ],
)
def test_a_list_of_steps_that_does_not_do_is_refused(window: str, place: str, says: str):
    with pytest.raises(RecipeError, match=rf"sampler\.window\.{place}: .*{says}"):
        load(BASE, [f"sampler.window={window}"])


def test_best_of_n_sorts_by_the_weighted_advantages():
    """DanceGRPO's: a reward of small range counts as much as one of large range; by their sum it would not."""
    recipe = load(BASE, ["objective.preset=dance", "train.group=6", "train.keep=2"])
    how = recipe.advantage.model_dump(exclude={"credit", "early"}) | {"weights": {"wide": 1.0, "narrow": 1.0}}
    rewards = {"wide": torch.tensor([0.0, 9, 1, 8, 2, 7]), "narrow": torch.tensor([0.9, 0.5, 0.0, 0.8, 0.1, 1.0])}
    group = torch.zeros(6, dtype=torch.int64)
    kept = extremes(row_advantages(rewards, group, None, **how), group, 2)
    each = sum((r - r.mean()) / r.std() for r in rewards.values())
    assert kept.nonzero()[:, 0].tolist() == sorted([int(each.argmin()), int(each.argmax())]) == [2, 5]
    plain = sum(rewards.values())
    assert sorted([int(plain.argmin()), int(plain.argmax())]) == [0, 1]
