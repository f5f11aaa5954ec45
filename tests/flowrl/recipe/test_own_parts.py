"""Parts of the user's own, named by dotted paths: what is refused in one line, and that what fits is used."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flowrl.build import build_advantage, build_objective, build_scorer, build_watch
from flowrl.contracts import Batch, LogProbs, Prompt, Rollout, Samples
from flowrl.learners import build_learner
from flowrl.planning.dry_run import describe
from flowrl.planning.loss_trials import try_losses
from flowrl.planning.walks import check_trained, ode, walk
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.load import dump, load
from flowrl.recipe.making import step_of
from flowrl.recipe.trust import foreign
from samplers.schedules import linear

BASE = str(Path(__file__).parents[2] / "recipes" / "quickstart.yaml")

PARTS = '''
from typing import Annotated
import torch
from samplers.gaussian import Gaussian
from samplers.plan import ROOT, Segment, Tree
from samplers.windows import Roles

def alternate(num_steps, *, every: Annotated[int, ">= 1"] = 2, iteration):
    """Every so many steps, beginning one later in each iteration."""
    return tuple(range(iteration % every, num_steps - 1, every))

def drawn(num_steps, *, seed): return Roles((0, 1, 2), (seed % 3,))
def unsorted(num_steps): return (2, 1)
def outside(num_steps): return [num_steps]
def nothing(num_steps): return ()
def late(num_steps, *, iteration): return (0,) if iteration < 5 else (0, 0)
def broken(num_steps): return num_steps / 0

def pairs(walk, *, twins: int = 2):
    """As many trees of twins as there is room for."""
    first = [Segment(ROOT, 0, 1, start=i) for i in range(walk.group // twins)]
    steps = tuple(s for s in walk.stochastic if s >= 1)
    return Tree(walk.num_steps, (*first, *(
        Segment(i // twins, 1, walk.num_steps, steps, steps, member=i, start=i // twins) for i in range(walk.group)
    )))

def stump(walk): return walk.group
def untrained(walk): return Tree(walk.num_steps, tuple(Segment(ROOT, 0, walk.num_steps, start=i) for i in range(12)))

def bent(levels, *, power: Annotated[float, "> 0"] = 2.0): return levels ** power
def flat(levels): return levels * 0
def short(levels): return levels[1:]

class Midpoint:
    """Euler, by a share of the prediction before."""
    def __init__(self, share=0.5): self.share = share
    def __call__(self, x, x0, s, s_next, previous):
        guess = x0 if previous is None else x0 + self.share * (x0 - previous[0])
        return guess + (x - guess) * (s_next / s)

def lost(x, x0, s, s_next, previous): return x0 / (s_next * 0)
def numbers(x, x0, s, s_next, previous): return 3.0

def discounted(rewards, rollout, *, weights, gamma: Annotated[float, "in (0, 1]"] = 0.9):
    """Later decisions count less."""
    total = sum(weights[name] * value for name, value in rewards.items() if weights[name])
    return (total - total.mean())[:, None] * gamma ** torch.arange(rollout.mask.shape[1])

def halved(rewards, rollout): return rewards["shapes"] - rewards["shapes"].nanmean()
def scalar(rewards, rollout): return torch.tensor(1.0)
def unscored(rewards, rollout): return next(iter(rewards.values())) / 0

def sigmoid_gate(seen, batch, *, slope=4.0):
    return -torch.sigmoid(slope * (seen.logp - batch.rollout_logp)) * batch.adv

class Pulled:
    """Towards the reference."""
    needs = {"reference"}
    def __init__(self, *, pull: float): self.pull = pull
    def __call__(self, seen, batch):
        gap = seen.logp - batch.reference
        return self.pull * gap.square() - gap * batch.adv, {"gap": gap}

def mean_loss(seen, batch): return (seen.logp * batch.adv).mean()
def still(seen, batch): return batch.adv
def unnamed(seen, batch): return seen.logp, {"size": seen.logp.sum()}
def misread(seen, batch): return seen.logp - batch.older_logp

def sqrt_decay(left, *, power=0.5): return left ** power
def negative(left): return left - 1

def too_short(metrics, *, least=10.0):
    """Completions that shrink."""
    if metrics.get("samples/length/mean", 100.0) < least: return f"only {metrics['samples/length/mean']:g} tokens"

def absent(metrics): return None if metrics["absent"] else "none"
def yes(metrics): return True
def silent(metrics): return None

def drift(x, v, s, s_next, *, noise, s_cap): return Gaussian(x + (s_next - s) * v, torch.tensor(noise))
def steered(x, v, s, s_next, *, noise, s_cap, gain: float): return Gaussian(x + gain * v, torch.tensor(noise))
steered.unit_variance = True
def pair(x, v, s, s_next, *, noise, s_cap): return x, torch.ones(())
def narrow(x, v, s, s_next, *, noise, s_cap): return Gaussian((x + v)[:, :1], torch.ones(()))
def wide(x, v, s, s_next, *, noise, s_cap): return Gaussian(x + v, torch.ones(7, 1, 1, 1, 1))
def detached(x, v, s, s_next, *, noise, s_cap): return Gaussian(x, torch.ones(()))
def infinite(x, v, s, s_next, *, noise, s_cap): return Gaussian(x + v, torch.tensor(float("nan")))
def renamed(x, v, s, s_next, *, strength, s_cap): return Gaussian(x + v, torch.ones(()))
'''


@pytest.fixture(autouse=True)
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "parts_of_tests.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)


def tried(*overrides: str):
    recipe = load(BASE, overrides)
    check_trained(recipe)
    try_losses(recipe)
    return recipe


def test_an_own_window_is_walked_with_the_recipes_keys():
    recipe = tried("sampler.window={kind: parts_of_tests.alternate, every: 3}")
    assert [walk(recipe, i).stochastic for i in range(4)] == [(0, 3), (1, 4), (2,), (0, 3)]
    assert walk(tried("sampler.window=parts_of_tests:alternate"), 1).trained == (1, 3)
    plan = walk(tried("sampler.window=parts_of_tests.drawn"), 2)
    assert plan.stochastic == (0, 1, 2) and len(plan.trained) == 1
    assert load_back(recipe).sampler.window.args == {"every": 3}


def load_back(recipe):
    Path("again.yaml").write_text(dump(recipe))
    again = load("again.yaml")
    assert again == recipe
    return again


def test_an_own_tree_is_grown_for_the_group():
    recipe = tried("sampler.tree={kind: parts_of_tests.pairs, twins: 3}")
    tree = walk(recipe, 0).tree(recipe.train.group)
    assert (len(tree.leaves), len(tree.rows), tree.segments[4 + 8].parent) == (12, 12, 2)
    assert load_back(recipe).sampler.tree.args == {"twins": 3}


def test_an_own_table_and_solver_are_walked():
    recipe = tried("sampler.schedule={kind: parts_of_tests.bent, power: 3, merge_at: 1, merge: 2}", "sampler.steps=7")
    table = walk(recipe, 0).table
    assert table.levels(linear(7)).tolist() == pytest.approx([(k / 7) ** 3 for k in (7, 6, 4, 3, 2, 1, 0)])
    assert load_back(recipe).sampler.schedule.args == {"power": 3}
    solver = "{kind: parts_of_tests.Midpoint, share: 0.25}"
    recipe = tried(f"eval.solver={solver}", f"sampler.tail={{ratio: 0.5, solver: {solver}}}")
    assert ode(recipe).tree(1) == ode(recipe).tree(1) and ode(recipe).solver.share == 0.25
    assert walk(recipe, 0).tree(3) == walk(recipe, 0).tree(3)
    assert load_back(recipe).eval.solver.args == {"share": 0.25}
    assert "parts_of_tests.Midpoint" in describe(recipe)
    assert load(BASE, ["eval.solver=dpmpp_2m"]).eval.solver == load(BASE, ["eval.solver={kind: dpmpp_2m}"]).eval.solver


def test_an_own_objective_and_advantage_are_built_with_the_recipes_keys():
    recipe = tried("objective={kind: parts_of_tests.sigmoid_gate, slope: 2}", "advantage=parts_of_tests.discounted")
    assert "parts_of_tests.sigmoid_gate(slope=2); parts_of_tests.discounted()" in describe(recipe)
    assert load_back(recipe).objective.args == {"slope": 2}
    logp, old = torch.tensor([[0.3, 0.1], [0.2, 0.5], [0.7, 9.0]], requires_grad=True), torch.zeros(3, 2)
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    adv = build_advantage(recipe, build_scorer(recipe))(
        {"shapes": torch.tensor([0.0, 1.0, 2.0]), "strict": torch.zeros(3)}, rollout_of(mask)
    )[0]
    assert adv[2].tolist() == pytest.approx([1.0, 0.9])
    unscored = {"shapes": torch.tensor([0.0, 1.0, torch.nan]), "strict": torch.zeros(3)}
    adv_of_the_scored = build_advantage(tried("advantage=parts_of_tests.halved"), build_scorer(recipe))
    assert adv_of_the_scored(unscored, rollout_of(mask))[0].tolist() == [-0.5, 0.5, 0.0]
    loss, metrics = build_objective(recipe)(LogProbs(torch.arange(3), torch.arange(2), logp), Batch(old, adv, mask))
    gate = 1 / (1 + math.exp(-1.4))
    assert loss[2].tolist() == pytest.approx([-gate, 0.0])
    (loss * build_objective(recipe).weights(mask)).sum().backward()
    assert logp.grad[2].tolist() == pytest.approx([-2 * gate * (1 - gate) / 5, 0.0])
    assert metrics["abs_log_ratio_max"] == pytest.approx(0.7)
    pulled = build_objective(tried("objective={kind: parts_of_tests.Pulled, pull: 0.5}"))
    assert pulled.needs == {"reference"} and pulled.together == "decision"
    assert build_objective(load(BASE, ["objective.kind=clipped"])) == build_objective(load(BASE))


def test_an_own_rule_rings_and_an_own_schedule_is_the_learners():
    recipe = tried(
        "watch={rules: [{kind: parts_of_tests.too_short, least: 20}], patience: 2}",
        "train.schedule={kind: parts_of_tests.sqrt_decay, power: 0.25}",
    )
    assert load_back(recipe).watch.rules[0].args == {"least": 20}
    watch = build_watch(recipe)
    rung = [watch.after_iteration(i, {"samples/length/mean": n}) for i, n in enumerate([30.0, 15.0, 12.0])]
    assert [[alarm.name for alarm in alarms] for alarms in rung] == [[], [], ["too_short"]]
    assert "only 12 tokens for 2 iterations" in rung[2][0].describe() and rung[2][0].action == "warn"
    assert watch.after_iteration(3, {}) == []
    total = recipe.train.iterations * recipe.train.updates
    learner = build_learner(recipe, SimpleNamespace(trainable=lambda: [torch.nn.Parameter(torch.ones(1))], modules={}))
    learner.steps = total // 4
    assert learner.lr == pytest.approx(recipe.train.lr * 0.75**0.25)
    ignored = build_watch(tried("watch={rules: [parts_of_tests.too_short], patience: 1, ignore: [too_short]}"))
    assert ignored.after_iteration(0, {"samples/length/mean": 1.0}) == []


def test_a_part_that_fails_during_a_run_is_told_in_one_line():
    recipe = tried("objective=parts_of_tests.sigmoid_gate", "watch.rules=[parts_of_tests.absent]")
    seen = LogProbs(torch.arange(3), torch.arange(2), torch.zeros(3, 2))
    batch = Batch(torch.zeros(3, 5), torch.ones(3), torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(RecipeError, match=r"^objective.kind: 'parts_of_tests.sigmoid_gate' failed: RuntimeError"):
        build_objective(recipe)(seen, batch)
    with pytest.raises(RecipeError, match=r"^watch.rules: 'parts_of_tests.absent' failed: KeyError"):
        build_watch(recipe).after_iteration(0, {"loss": 1.0})


def rollout_of(mask):
    samples = Samples([Prompt("a", "a")] * len(mask), torch.zeros(len(mask), dtype=torch.int64))
    return Rollout(samples, torch.zeros(mask.shape), mask, None)


def test_what_a_recipe_names_is_asked_about_before_it_is_imported():
    recipe = load(BASE, ["sampler.window=parts_of_tests.drawn", "sampler.tree=parts_of_tests.pairs"])
    assert [place for place, _ in foreign(recipe)] == ["sampler.window.kind", "sampler.tree.kind"]


@pytest.mark.parametrize(
    ("override", "place", "words"),
    [
        ("sampler.window={kind: parts_of_tests.alternate, evry: 3}", "sampler.window.evry", "did you mean 'every'?"),
        ("sampler.window={kind: parts_of_tests.alternate, every: 0}", "sampler.window.every", "a whole number >= 1"),
        ("sampler.window={kind: parts_of_tests.alternate, every: x}", "sampler.window.every", "a whole number"),
        ("sampler.window={kind: parts_of_tests.alternate, seed: 1}", "sampler.window.seed", "accepted: every"),
        ("sampler.window=parts_of_tests.altrnate", "sampler.window.kind", "did you mean 'alternate'?"),
        ("sampler.window=parts_of_tests.pairs", "sampler.window.kind", "is not a valid window"),
        ("sampler.window=parts_of_tests.unsorted", "sampler.window.kind", "(2, 1)"),
        ("sampler.window=parts_of_tests.outside", "sampler.window.kind", "from 0 to 5"),
        ("sampler.window=parts_of_tests.nothing", "sampler.window.kind", "one or more"),
        ("sampler.window=parts_of_tests.late", "sampler.window.kind", "(0, 0)"),
        ("sampler.window=parts_of_tests.broken", "sampler.window.kind", "ZeroDivisionError"),
        ("sampler.tree=parts_of_tests.stump", "sampler.tree.kind", "samplers.plan.Tree"),
        ("sampler.tree=parts_of_tests.untrained", "sampler.tree.kind", "without a trained step"),
        ("sampler.tree={kind: parts_of_tests.pairs, twins: 0}", "sampler.tree.kind", "ZeroDivisionError"),
        ("sampler.schedule=parts_of_tests.flat", "sampler.schedule.kind", "levels that fall to 0"),
        ("sampler.schedule=parts_of_tests.short", "sampler.schedule.kind", "a table of 7 levels"),
        ("sampler.schedule={kind: parts_of_tests.bent, power: 0}", "sampler.schedule.power", "a number > 0"),
        ("sampler.schedule={kind: karras, shift: 2}", "sampler.schedule.shift", "reads only rho"),
        ("eval.solver=parts_of_tests.lost", "eval.solver", "finite numbers"),
        ("eval.solver=parts_of_tests.numbers", "eval.solver", "returns 3.0"),
        ("eval.solver={kind: parts_of_tests.Midpoint, shore: 1}", "eval.solver.shore", "did you mean 'share'?"),
        ("eval.solver=eulr", "eval.solver", "did you mean 'euler'?"),
        ("advantage={kind: parts_of_tests.discounted, gamma: 0}", "advantage.gamma", "a number in (0, 1]"),
        ("advantage=parts_of_tests.scalar", "advantage.kind", "a tensor [] of float32"),
        ("advantage=parts_of_tests.unscored", "advantage.kind", "finite numbers"),
        ("advantage={kind: normalised, eqs: 1}", "advantage.eqs", "did you mean 'eps'?"),
        ("objective={kind: parts_of_tests.sigmoid_gate, preset: guard}", "objective.preset", "accepted: slope"),
        ("objective=parts_of_tests.Pulled", "objective.pull", "missing"),
        ("objective=parts_of_tests.mean_loss", "objective.kind", "a number a decision"),
        ("objective=parts_of_tests.still", "objective.kind", "without gradient"),
        ("objective=parts_of_tests.unnamed", "objective.kind", "*_max"),
        ("objective=parts_of_tests.misread", "objective.kind", "'older_logp'"),
        ("objective={kind: cliped}", "objective", "did you mean 'clipped'?"),
        ("train.schedule=parts_of_tests.negative", "train.schedule", "returns -0.5"),
        ("train.schedule={kind: parts_of_tests.sqrt_decay, pwer: 1}", "train.schedule.pwer", "did you mean 'power'?"),
        ("watch.rules=[parts_of_tests.yes]", "watch.rules", "returns True"),
        ("watch.rules=[parts_of_tests.silent]", "watch.rules", "two alarms"),
        ("watch.rules=[too_short]", "watch.rules.kind", "accepted: a dotted path"),
        ("watch.rules=[{kind: parts_of_tests.too_short, leest: 1}]", "watch.rules.leest", "did you mean 'least'?"),
        ("sampler.step=parts_of_tests.steered", "sampler.step_args.gain", "missing"),
        ("sampler.step={kind: parts_of_tests.steered, gane: 1}", "sampler.step_args.gane", "did you mean 'gain'?"),
        ("sampler.step={kind: flow_sde, gain: 1}", "sampler.step_args.gain", "accepted: nothing"),
        ("sampler.step=parts_of_tests.pair", "sampler.step", "returns a tuple of 2"),
        ("sampler.step=parts_of_tests.narrow", "sampler.step", "mean [3, 1, 2, 2]"),
        ("sampler.step=parts_of_tests.wide", "sampler.step", "std [7, 1, 1, 1, 1]"),
        ("sampler.step=parts_of_tests.detached", "sampler.step", "without gradient"),
        ("sampler.step=parts_of_tests.infinite", "sampler.step", "not finite"),
        ("sampler.step=parts_of_tests.renamed", "sampler.step", "'noise'"),
    ],
)
def test_a_part_that_does_not_fit_is_refused_in_one_line_before_weights_load(override: str, place: str, words: str):
    with pytest.raises(RecipeError) as caught:
        tried(override)
    assert (caught.value.place, "\n" in str(caught.value)) == (place, False), str(caught.value)
    assert words in str(caught.value)


def test_an_own_step_takes_its_own_keys_and_keeps_what_is_said_beside_it():
    tried("sampler.step=parts_of_tests.drift")
    recipe = tried("sampler.step={kind: parts_of_tests.steered, gain: 3}")
    assert (recipe.sampler.step, recipe.sampler.step_args) == ("parts_of_tests.steered", {"gain": 3})
    assert recipe.sampler.noise == 0.7 and load_back(recipe) == recipe
    step, one = step_of(recipe), torch.ones(3, 1)
    assert step(one, 2 * one, 0.8, 0.6, noise=0.5, s_cap=0.9).mean[2].item() == 7.0 and step.unit_variance
