"""Plans and costs of a denoising model's recipe, and their lines in a dry run."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowrl.known.models import PIPELINES
from flowrl.planning import walks
from flowrl.planning.costs import Arithmetic, rows_at_once
from flowrl.planning.walks import AnyPlan
from flowrl.recipe.schema import Recipe
from samplers.decisions import replay_forwards
from samplers.plan import Plan, Tree
from samplers.trees import lines as tree_lines
from samplers.trees import picture
from samplers.visits import Column, Injected, Visited

if TYPE_CHECKING:
    from flowrl.contracts import Prompt
    from flowrl.planning.sizes.flops import Flops
    from flowrl.planning.sizes.memory import Sizes

KNOWN: Sequence[str] = tuple(PIPELINES)  # models on a hub whose configs ship


def plan(recipe: Recipe, iteration: int) -> AnyPlan:
    """The role of every denoising step."""
    return walks.walk(recipe, iteration)


def eval_plan(recipe: Recipe) -> Plan:
    """The pure ODE walk."""
    return walks.ode(recipe)


def group_plan(recipe: Recipe) -> Plan:
    """The same: samples of one prompt differ in their initial noise."""
    return walks.ode(recipe)


def reference_plan(recipe: Recipe) -> Plan:
    """The ODE, with as many steps as in training."""
    return walks.ode(recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"steps": None})}))


def starts(plan: AnyPlan, group: int) -> list[int]:
    """The number of the initial noise of each finished sample."""
    tree = plan.tree(group)
    return [tree.segments[tree.path(leaf)[0]].start for leaf in tree.leaves]


def check(recipe: Recipe) -> None:
    """See `walks.check_trained`."""
    walks.check_trained(recipe)


def arithmetic(recipe: Recipe, iteration: int) -> Arithmetic:
    """The arithmetic of an iteration, in row-forwards.

    Steps that the samples of a prompt share cost one row in the rollout, and in training one per micro-batch.
    """
    train = recipe.train
    if recipe.objective.loss is not None:
        return _noised(recipe, iteration)
    tree = walks.walk(recipe, iteration).tree(train.group)
    rows = train.drawn * len(tree.rows)
    per_update = rows // train.updates
    by_step = train.update_by == "steps"
    one_pass = replay_forwards(tree, train.drawn, train.updates, train.micro_rows, by_step=by_step)
    reference = replay_forwards(tree, train.drawn, 1, train.micro_rows)
    in_two_passes = recipe.objective.level != "token" and len(tree.trained) > 1  # see backward.py
    return Arithmetic(
        samples=train.drawn * len(tree.leaves),
        rows=rows,
        rows_per_update=per_update,
        optimizer_steps=train.epochs * train.updates,
        micro_batches=-(-per_update // (train.micro_rows or per_update)),
        rollout_forwards=train.drawn * sum(len(front.units) for front in tree.fronts),
        train_forwards=train.epochs * one_pass,
        reference_forwards=reference * max(r.steps for r in recipe.references) if recipe.objective.kl > 0 else 0,
        corrected_forwards=one_pass if recipe.objective.correction is not None else 0,
        whole_row_forwards=train.epochs * one_pass if in_two_passes else 0,
        rows_at_once=rows_at_once(recipe, max(part.rows for part in tree.passes())),
    )


def _noised(recipe: Recipe, iteration: int) -> Arithmetic:
    """Where finished samples are noised again: a row-forward for each of them and each level.

    One of the older copy is left out where that is what an update begins with, which is not counted here.
    """
    train, loss = recipe.train, recipe.objective.loss
    assert loss is not None
    tree = walks.walk(recipe, iteration).tree(train.group)
    drawn = train.source != "files"
    rows = train.drawn * len(tree.leaves)
    per_group = 2 * train.pairs if loss.kind == "flow_dpo" else train.keep or train.group
    looks = train.epochs * train.drawn * min(per_group, train.group) * len(tree.levels)
    others = int(loss.reads_old) + int(loss.reads_reference or recipe.objective.kl > 0)
    per_update = rows // train.updates
    whole = train.epochs * rows
    shown = {"draft": whole, "match": whole, "refl": looks, "srpo": looks}.get(loss.kind, 0)
    texts = 2 if loss.positive is not None else 1
    return Arithmetic(
        samples=rows,
        rows=rows,
        rows_per_update=per_update,
        optimizer_steps=train.epochs * train.updates,
        micro_batches=-(-per_update // (train.micro_rows or per_update)),
        rollout_forwards=train.drawn * sum(len(front.units) for front in tree.fronts) if drawn else 0,
        train_forwards=looks,
        reference_forwards=others * looks,
        decodes=shown,
        reward_gradients=shown * texts * sum(spec.weight != 0 for spec in recipe.rewards.values()),
        rows_at_once=rows_at_once(recipe, max(part.rows for part in tree.passes())),
    )


def eval_forwards(recipe: Recipe) -> int:
    """One row-forward per step."""
    return walks.ode(recipe).num_steps


def lines(recipe: Recipe) -> list[str]:
    """The steps, with a picture of each plan that differs from the one before."""
    sampler, group = recipe.sampler, recipe.train.group
    if recipe.objective.loss is not None:
        return _noised_lines(recipe)
    schedule = "" if sampler.schedule.kind == "own" else f" on a {sampler.schedule.kind} table"
    shared = ", groups share their first latent" if sampler.share_noise else ""
    legend = "● draws noise and is trained   · follows the ODE"
    first = walks.walk(recipe, 0).tree(group)
    legend += "   o draws noise" if "o" in picture(first) else ""
    legend += f"   | {sampler.tail.solver} from here" if sampler.tail is not None else ""
    walk = f"{sampler.steps} by {sampler.step}, noise {sampler.noise:g}{schedule}{shared}"
    text = [f"steps       {walk}", f"            {legend}"]
    shown = _shown_iterations(recipe)
    width = len(str(shown[-1]))
    text += [f"            {picture(walks.walk(recipe, i).tree(group))}  iteration {i:>{width}}" for i in shown]
    if len(shown) == 1:
        text[-1] += " and all others"
    elif shown[-1] < recipe.train.iterations - 1:
        text.append("            … and so on")
    if recipe.prompts.heldout is not None:
        text.append(f"            {picture(walks.ode(recipe).tree(1))}  evaluation")
    return [*text, *_rows_of_tree(first)] if sampler.tree is not None else text


def _noised_lines(recipe: Recipe) -> list[str]:
    """The walk, and the levels of the first iterations."""
    plan = walks.walk(recipe, 0)
    assert isinstance(plan, Plan)
    by = "" if plan.solver == "euler" else f" by {plan.solver}"
    loss, after = recipe.objective.loss, "finished samples are noised again"
    if loss is not None and loss.pulls:
        after = f"{after} by their own noise" if loss.kind == "srpo" else "the rewards' gradient goes back through them"
    text = [f"steps       {recipe.sampler.steps} of the ODE{by}; {after}"]
    if recipe.train.source == "files":
        text = ["samples     from files, encoded in each iteration; none are drawn and scored"]
    elif recipe.train.share is not None:
        text.append(
            f"samples     of {recipe.train.share:.0%} of the prompts the first come from files; the rest is drawn"
        )
    for i in range(min(recipe.train.iterations, 3)):
        trained_levels = walks.levels(recipe, i)
        told = ", ".join(map(_column, trained_levels))
        levels = [level for level in trained_levels if isinstance(level, float)]
        told = f"{len(levels)} from {max(levels):.3f} to {min(levels):.3f}" if len(levels) > 12 else told
        told = f"of steps {told}" if isinstance(trained_levels[0], int) else told
        text.append(f"{'levels' if i == 0 else '':<12}{told}  iteration {i}")
    if recipe.sampler.look:
        given = ", ".join(f"{name} {value}" for name, value in recipe.sampler.look.items())
        text.append(f"{'looks':<12}with {given}, unlike the rollout")
    return text


def _column(column: Column) -> str:
    """What is looked at, in words."""
    if isinstance(column, Visited):
        leap = "" if column.to is None else f", to step {column.to}"
        judged = "" if column.judged is None else f", judged at step {column.judged}"
        return f"where step {column.step} begins{leap}{judged}"
    if isinstance(column, Injected):
        return f"{column.level:.3f} to {column.to:.3f}"
    return str(column) if isinstance(column, int) else f"{column:.3f}"


def _rows_of_tree(tree: Tree) -> list[str]:
    """The denoiser rows of a tree, step by step, wrapped."""
    lines = ["tree        denoiser rows per prompt, at iteration 0"]
    for text in tree_lines(tree):
        lines += [f"            {part}" for part in textwrap.wrap(text, 106)]
    return lines


def _shown_iterations(recipe: Recipe, limit: int = 8) -> list[int]:
    """The first iterations at which the plan changes, at most `limit`."""
    shown, before = [], None
    for i in range(min(recipe.train.iterations, 1000)):
        plan = walks.walk(recipe, i)
        if plan != before:
            shown.append(i)
        if len(shown) == limit:
            break
        before = plan
    return shown


def sizes(recipe: Recipe, prompts: "Sequence[Prompt]") -> "Sizes | None":
    """Parameters and memory by phase; None where no config of the model is at hand."""
    from flowrl.planning.sizes import memory  # which asks the plans of this module

    return memory.sizes(recipe, prompts)


def flops(recipe: Recipe, prompts: "Sequence[Prompt]") -> "Flops | None":
    """Floating-point operations of an iteration; None where they are not known."""
    from flowrl.planning.sizes import flops as counted

    return counted.denoising(recipe, prompts)


def eval_words(recipe: Recipe) -> str:
    """The number of ODE steps, and what guides them."""
    guide = recipe.sampler.guide
    return f"{walks.ode(recipe).num_steps} ODE steps" + ("" if guide is None else f", {guide}")
