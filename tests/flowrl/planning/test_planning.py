"""Plans and arithmetic of recipes, against counts made by walking through the steps one by one."""

from pathlib import Path

import pytest
import torch

from flowrl.names import load as load_step
from flowrl.names import steps
from flowrl.planning.costs import arithmetic, eval_plan, plan_for
from flowrl.planning.dry_run import describe
from flowrl.planning.walks import check_trained
from flowrl.recipe.checks.steps import draws_at_the_end
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import load
from samplers.trees import picture

BASE = str(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")


def quick(*overrides):
    return load(BASE, list(overrides))


def test_windows_of_every_kind():
    def at(window, iteration=0, steps=10):
        return plan_for(quick(f"sampler.steps={steps}", f"sampler.window={window}"), iteration).stochastic

    assert at("{kind: all}") == tuple(range(9))
    assert at("{kind: all, skip_last: 0}") == tuple(range(10))
    assert at("{kind: first, size: 3}") == (0, 1, 2)
    assert at("{kind: progressive, size: 4, interval: 25}", 24) == (0, 1, 2, 3)
    assert at("{kind: progressive, size: 4, interval: 25}", 25) == (1, 2, 3, 4)
    assert at("{kind: progressive, size: 4, interval: 1, stride: 0}", 99) == (0, 1, 2, 3)
    assert at("{kind: progressive, size: 4, interval: 1, roll_back: false}", 999) == (5, 6, 7, 8)
    assert at("{kind: progressive, size: 4, interval: 1, roll_back: false, high: 10}", 999) == (6, 7, 8, 9)
    for kind in ("random", "random_window"):
        drawn = [at(f"{{kind: {kind}, size: 2, low: 3}}", i) for i in range(40)]
        assert len(set(drawn)) > 3
        assert {s for d in drawn for s in d} == set(range(3, 9))  # high by default: all but the last step
        assert drawn == [at(f"{{kind: {kind}, size: 2, low: 3}}", i) for i in range(40)]


@pytest.mark.parametrize("step", ["cps", "ddim"])
def test_a_last_step_without_noise_is_neither_drawn_nor_billed(step):
    window = "sampler.window={kind: all, skip_last: 0}"
    whole, silent = quick(window), quick(window, f"sampler.step={step}", "sampler.noise=0.5")
    assert plan_for(whole, 0).trained == (0, 1, 2, 3, 4, 5)
    assert plan_for(silent, 0).trained == plan_for(silent, 0).stochastic == (0, 1, 2, 3, 4)
    assert arithmetic(whole).train_forwards - arithmetic(silent).train_forwards == arithmetic(whole).rows
    with pytest.raises(RecipeError, match=f"train only step 5, the last, where {step} draws no noise"):
        check_trained(
            quick("sampler.window={kind: frozen, low: 5, size: 1}", f"sampler.step={step}", "sampler.noise=0.5")
        )


def test_which_steps_draw_at_the_end():
    x = torch.zeros(1, 2)
    for name in sorted(set(steps()) - {"ode", "vp_ddim"}):  # draws nowhere; goes by the name of ddim in a recipe
        found = load_step(name, steps())(x, x, 0.2, 0.0, noise=0.5, s_cap=0.9)
        assert bool(torch.as_tensor(found.std > 0).any()) is draws_at_the_end(name, "shapes-flux")


def test_a_plan_trains_what_it_draws_and_evaluation_draws_nothing():
    plan = plan_for(quick(), 0)
    assert plan.stochastic == plan.trained and plan.share_noise
    evaluation = eval_plan(quick("eval.steps=9"))
    assert (evaluation.num_steps, evaluation.stochastic, evaluation.share_noise) == (9, (), False)
    assert eval_plan(quick()).num_steps == 6


@pytest.mark.parametrize("seed", [0, 1])
def test_the_seed_moves_random_windows(seed):
    plans = [plan_for(quick(f"seed={seed}"), i) for i in range(30)]
    others = [plan_for(quick(f"seed={seed + 7}"), i) for i in range(30)]
    assert plans != others


@pytest.mark.parametrize(
    "window",
    [
        "{kind: random, size: 3}",
        "{kind: random, size: 2, steps: [0, 2, 3, 5, 7, 8]}",
        "{kind: random_window, size: 2}",
        "{kind: fraction, share: 0.5}",
    ],
)
def test_neighbouring_seeds_draw_no_shifted_copies_of_their_windows(window):
    def drawn(seed):
        recipe = quick("sampler.steps=12", f"sampler.window={window}", f"seed={seed}")
        return [plan_for(recipe, i).trained for i in range(60)]

    runs = {seed: drawn(seed) for seed in (4, 5, 6)}
    assert runs[4] == drawn(4)
    for one, other in ((4, 5), (5, 6), (4, 6)):
        for shift in range(-3, 4):
            pairs = [(runs[one][i], runs[other][i + shift]) for i in range(3, 57)]
            # 10 windows or more are equally likely: 5.4 pairs of 54 are equal by chance, standard deviation 2.2
            assert sum(a == b for a, b in pairs) < 17


def walked(recipe, iteration):
    """(rollout, training, reference) row-forwards, counted by laying out every forward of an iteration."""
    plan, train = plan_for(recipe, iteration), recipe.train
    rows = [(p, g) for p in range(train.prompts) for g in range(train.group)]

    def cost(piece, step):
        together = plan.share_noise and step <= plan.stochastic[0]
        return len({p for p, _ in piece}) if together else len(piece)

    rollout = sum(cost(rows, step) for step in range(plan.num_steps))

    def replay(block, micro):
        parts = [block[i : i + micro] for i in range(0, len(block), micro)]
        return sum(cost(part, step) for part in parts for step in plan.trained)

    size = len(rows) // train.updates
    blocks = [rows[i : i + size] for i in range(0, len(rows), size)]
    training = train.epochs * sum(replay(b, train.micro_batch or size) for b in blocks)
    reference = replay(rows, train.micro_batch or len(rows)) if recipe.objective.kl else 0
    return rollout, training, reference


@pytest.mark.parametrize("share", ["true", "false"])
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["train.updates=4", "train.micro_batch=12"],
        ["train.updates=2", "train.micro_batch=7", "train.epochs=3", "objective.kl=0.1"],
        ["train.rollout_batch=5", "train.group=12"],
        ["train.rollout_batch=30", "train.prompts=5", "train.micro_batch=30", "objective.kl=0.1"],
        ["sampler.window={kind: all}", "train.micro_batch=1"],
    ],
)
def test_forwards_are_those_of_a_walk_through_the_iteration(overrides, share):
    recipe = quick(f"sampler.share_noise={share}", *overrides)
    for iteration in range(6):
        a = arithmetic(recipe, iteration)
        assert (a.rollout_forwards, a.train_forwards, a.reference_forwards) == walked(recipe, iteration)
        assert a.whole_row_forwards == 0


def test_sizes():
    a = arithmetic(quick("train.updates=4", "train.epochs=2", "train.micro_batch=20"))
    assert (a.rows, a.rows_per_update, a.optimizer_steps, a.micro_batches) == (192, 48, 8, 3)
    at_once = [arithmetic(quick(f"train.rollout_batch={n}")).rows_at_once for n in (5, 12, 30, 192)]
    assert at_once == [5, 12, 24, 192]


def test_quickstart_by_hand():
    """16 groups of 12, window at steps 1 and 2 of 6: steps 0 and 1 cost 16 rows, steps 2 to 5 cost 192 each."""
    recipe = quick("sampler.window={kind: progressive, size: 2, interval: 1}")
    a = arithmetic(recipe, 1)
    assert a.rollout_forwards == 2 * 16 + 4 * 192
    assert a.train_forwards == 16 + 192


def test_a_plan_follows_the_curves_of_a_recipe():
    recipe = quick("objective.kl={4: 0, 40: 0.02}", "train.lr={by: updates, points: {0: 1.0e-4, 8: 3.0e-4}}")
    assert [arithmetic(recipe, i).reference_forwards for i in (0, 4, 5, 79)] == [0, 0, 208, 208]
    text = describe(recipe)
    assert "curves      objective.kl  0 at iteration 4 -> 0.02 at iteration 40\n" in text
    assert "            train.lr      0.0001 at update 0 -> 0.0003 at update 8\n" in text
    assert "training at most 208 with gradient, reference 0 to 208" in text and "curves" not in describe(quick())


def test_dry_run_text_tells_the_plan():
    text = describe(quick("train.updates=2", "objective.kl=0.01"), num_train=1500, num_heldout=320)
    for words in (
        "16 prompts x 12 samples = 192 rows",
        "1 pass x 2 updates = 2 optimizer steps, each on 96 rows (8 prompts)",
        "shapes/train (1500); held out: shapes/heldout (320)",
        "LoRA rank 16, alpha 32",
        "flow_sde, noise 0.7, groups share their first latent",
        picture(plan_for(quick(), 0).tree(1)) + "  iteration",
        "reference 208",
        "grpo: token ratio, clip -0.001 +0.001, KL 0.01 (exact), decision_mean; baseline group, scale group",
        "shapes_strict, witness",
        "runs/quickstart",
    ):
        assert words in text
    assert max(len(line) for line in text.split("\n")) <= 120


def test_a_ratio_of_whole_rows_costs_a_pass_where_there_is_more_than_one_step():
    for window in ("{kind: all}", "{kind: first, size: 1}"):
        recipe = quick("objective.preset=gspo", f"sampler.window={window}", "train.epochs=2")
        a = arithmetic(recipe)
        assert a.whole_row_forwards == (a.train_forwards if "all" in window else 0)
        text = describe(recipe)
        assert "gspo: seq_mean ratio, clip -0.001 +0.001, seq_mean_mean" in text
        assert (f"{a.train_forwards} without gradient, for ratios" in text) == ("all" in window)
        assert max(len(line) for line in text.split("\n")) <= 120


def test_dry_run_shows_what_a_refill_may_cost():
    text = describe(quick("objective.preset=dapo"))
    assert "groups without advantage are replaced, up to 9 times" in text and "takes at most 9 more rollouts" in text
    assert max(len(line) for line in text.split("\n")) <= 120
    assert "anew" not in describe(quick()) and "more rollouts" not in describe(quick())


def test_dry_run_shows_the_parts_of_a_preset():
    more = ["objective.dual=3", "objective.log_ratio_limit=20", "objective.length=7", "objective.kl=0.1"]
    text = describe(quick("objective.preset=dr_grpo", *more))
    words = "dr_grpo: token ratio, clip -0.001 +0.001, dual 3, log-ratio within 20, KL 0.1 (exact), constant, length 7"
    assert f"{words}; baseline group, scale none" in " ".join(text.split())


def test_dry_run_shows_a_progressive_window_where_it_moves():
    lines = describe(load("mixgrpo_flux")).split("\n")
    moves = [line.split("iteration")[1].strip() for line in lines if "●" in line and "iteration" in line]
    assert moves == ["0", "25", "50", "75", "100", "125", "150", "175"]


def test_dry_run_gives_a_range_where_the_cost_depends_on_the_window():
    text = describe(load("mixgrpo_flux"))
    costs = [arithmetic(load("mixgrpo_flux"), i).rollout_forwards for i in range(300)]
    assert f"rollout {min(costs)} to {max(costs)}" in text


def test_dry_run_counts_the_tokens_of_completions_that_are_drawn_in_parts():
    def of(*overrides: str):
        recipe = load("tiny_lm_grpo", ["train.prompts=4", "train.updates=1", *overrides])
        return arithmetic(recipe, 0), " ".join(describe(recipe).split())

    plain, _ = of()
    assert plain.rollout_forwards == 4 * 12 * 40
    tree, text = of("generation.tree={kind: treepo, segment: 10, roots: [2, 2]}")
    assert tree.rollout_forwards == 4 * 10 * (2 + 4 + 8 + 12) and tree.train_forwards == plain.train_forwards
    assert "12 of a prompt by a tree (treepo): up to 260 tokens are computed, 0.54 of those of independent ones" in text
    valued, text = of("generation.again={kind: values, segment: 10, continuations: 3}")
    assert valued.rollout_forwards == 4 * (12 * 40 + (1 + 12 * 3) * 3 * 40) and "3 continuations from the begin" in text
    hinted, text = of("generation.again={kind: hints, shares: [0.5, 0.9]}")
    assert hinted.rollout_forwards == 3 * plain.rollout_forwards and "drawn anew with hints" in text
    longer, text = of("generation.again={kind: corrections, tokens: 20}")
    assert longer.rollout_forwards == longer.train_forwards == 4 * 12 * 60 and "wrong ones are corrected" in text
    assert "with 8 tokens left, '<answer>' is given" in of("generation.force={text: <answer>, left: 8}")[1]
