"""The plans of iterations and evaluations, from the recipe and the number of the iteration alone."""

from typing import Any

from flowrl.planning.trials import check_tree, check_window, report_errors, try_schedule, try_solver, try_step
from flowrl.recipe.checks.schedules import num_steps
from flowrl.recipe.checks.steps import draws_at_the_end
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.keys.noised import Levels
from flowrl.recipe.making import build_part, solver_of
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import Own as OwnPart
from samplers import noise_draws, tables, windows
from samplers.growth import Grown, Walk
from samplers.plan import Plan, Table
from samplers.schedules import flash_steps
from samplers.trees import Branching, PerStep
from samplers.visits import Column, Visited

DRAWN: dict[str, tuple[Any, tuple[str, ...]]] = {  # kinds of sampler.levels and the keys that they hand on
    "leap": (noise_draws.leap, ("through",)),
    "bridge": (noise_draws.bridge, ("number", "through", "bias")),
    "spaced": (noise_draws.spaced, ("number", "stop")),
}
AnyPlan = Plan | Branching | PerStep | Grown


def walk(recipe: Recipe, iteration: int) -> AnyPlan:
    """What the denoising steps of a training iteration do."""
    if recipe.objective.loss is not None:
        return _noised(recipe, iteration)
    sampler, tree = recipe.sampler, recipe.sampler.tree
    steps, trained = _window(recipe, iteration)
    table = _merge_steps(recipe, base_table(recipe))
    ends: dict[str, Any] = {
        "table": table,
        "tail": _tail(recipe, table, after=steps[-1] + 1),
        "solver": "euler" if sampler.tail is None else solver_of(sampler.tail.solver),
        "share_noise": sampler.share_noise,
    }
    if tree is None:
        return Plan(sampler.steps, steps, trained, **ends)
    start = Walk(sampler.steps, steps, trained, recipe.train.group, iteration, **ends)
    if not isinstance(tree, OwnPart):
        return build_part("tree", tree)(start)
    with report_errors("sampler.tree.kind", tree.kind):
        grown = build_part("tree", tree)(start)
    return check_tree("sampler.tree.kind", tree.kind, grown, start)


def _noised(recipe: Recipe, iteration: int) -> Plan:
    """A walk of the ODE, and the noise levels that its samples are looked at afterwards."""
    sampler, solver = recipe.sampler, "euler" if recipe.sampler.tail is None else solver_of(recipe.sampler.tail.solver)
    table = _merge_steps(recipe, base_table(recipe))
    loss = recipe.objective.loss
    keep = loss is not None and bool(loss.own_noise)
    return Plan(sampler.steps, (), (), table=table, solver=solver, levels=levels(recipe, iteration), keep_noise=keep)


def levels(recipe: Recipe, iteration: int) -> tuple[Column, ...]:
    """The noise levels of an iteration; see sampler.levels."""
    wanted, seed = recipe.sampler.levels or Levels(), windows.seed_of(recipe.seed, iteration)
    low, high, steps = wanted.low or 0, wanted.high, num_steps(recipe)
    if wanted.kind == "walk":
        first, end = int(low) + (steps if low < 0 else 0), steps if high is None else int(high)
        number = end - first if wanted.number is None else wanted.number
        drawn = noise_draws.of_walk(number, steps=steps, first=first, last=end, bias=wanted.bias or 0.0, seed=seed)
        pulls = recipe.objective.loss is not None and recipe.objective.loss.pulls
        over = (first, end) if wanted.whole else None
        return tuple(Visited(step, over=over) for step in drawn) if pulls else drawn
    if wanted.kind == "tail":
        return noise_draws.tail(int(low) or 1, steps if high is None else int(high), steps=steps, seed=seed)
    if wanted.kind == "again":
        return noise_draws.again(2 if wanted.number is None else wanted.number, steps=steps)
    if wanted.kind in DRAWN:
        draw, keys = DRAWN[wanted.kind]
        chosen: dict[str, Any] = {name: value for name in keys if (value := getattr(wanted, name)) is not None}
        return draw(**chosen, steps=steps, seed=seed)
    if wanted.kind == "align":
        given = ("number", "low", "high", "truth", "inversion")
        how: dict[str, Any] = {name: value for name in given if (value := getattr(wanted, name)) is not None}
        return noise_draws.align(**how, seed=seed)
    how = {"low": low, "high": 1.0 if high is None else high, "seed": seed}
    if wanted.kind == "uniform":
        return noise_draws.uniform(wanted.number or 1, **how)
    mean, std = wanted.mean or 0.0, 1.0 if wanted.std is None else wanted.std
    return noise_draws.logit_normal(wanted.number or 1, mean=mean, std=std, **how)


def pruned_widths(recipe: Recipe, iteration: int) -> tuple[list[list[bool]], str, float] | None:
    """(for each row of a prompt and each trained step, whether it is a decision after the last split of its tree; which
    of them are trained; their share) if a tree leaves some out, else None."""
    plan = walk(recipe, iteration)
    if not isinstance(plan, Branching) or plan.width_prune is None:
        return None
    tree = plan.tree(recipe.train.group)
    own = [set(tree.segments[i].trained) for i in tree.rows]
    behind = [[step in steps and step > plan.splits[-1] for step in tree.trained] for steps in own]
    return behind, plan.width_prune, plan.width_ratio


def check_trained(recipe: Recipe) -> None:
    """Raises RecipeError if objective.weight or train.updates does not fit the number of trained steps, or if an
    iteration would train nothing."""
    weight, train = recipe.objective.weight, recipe.train
    if recipe.objective.loss is not None:
        return
    for iteration in range(min(train.iterations, 1000)):
        _window(recipe, iteration)
    _try_own(recipe)
    if isinstance(weight, str) and train.update_by == "prompts":
        return
    trained = len(walk(recipe, 0).tree(train.group).trained)
    if not isinstance(weight, str) and len(weight) != trained:
        problem = f"got {len(weight)} factors, but an iteration trains {trained} steps"
        raise RecipeError("objective.weight", problem, "give one factor for each of them, in their order")
    if train.update_by == "steps" and trained % train.updates:
        problem = f"got {train.updates}, but the {trained} trained steps do not divide into that many updates"
        divisors = [d for d in range(1, trained + 1) if trained % d == 0]
        raise RecipeError("train.updates", problem, f"accepted: {', '.join(map(str, divisors))}")


def _try_own(recipe: Recipe) -> None:
    """Raises RecipeError if one of the user's own parts of the walk returns something unusable."""
    try_step(recipe)
    sampler = recipe.sampler
    if isinstance(sampler.schedule, OwnPart):
        try_schedule(sampler.schedule.kind, base_table(recipe), sampler.steps)
    solvers = {"eval.solver": recipe.eval.solver, "sampler.tail.solver": sampler.tail and sampler.tail.solver}
    for at, named in solvers.items():
        if isinstance(named, OwnPart):
            try_solver(at, named.kind, solver_of(named))
    place = next((f"sampler.{n}" for n in ("tree", "window") if isinstance(getattr(sampler, n), OwnPart)), None)
    if place is not None:
        for iteration in {0, recipe.train.iterations // 2, recipe.train.iterations - 1}:
            with report_errors(f"{place}.kind", getattr(sampler, place.removeprefix("sampler.")).kind):
                walk(recipe, iteration).tree(recipe.train.group)


def ode(recipe: Recipe) -> Plan:
    """The pure ODE walk of an evaluation."""
    number = recipe.eval.steps or recipe.sampler.steps
    return Plan(number, stochastic=(), trained=(), table=base_table(recipe), solver=solver_of(recipe.eval.solver))


def base_table(recipe: Recipe) -> Table:
    """The sigma table of a recipe, before any steps are merged."""
    schedule = recipe.sampler.schedule
    if isinstance(schedule, OwnPart):
        return tables.Given(build_part("schedule", schedule))
    return build_part("schedule", schedule)()


def _merge_steps(recipe: Recipe, base: Table) -> Table:
    schedule = recipe.sampler.schedule
    if schedule.merge is None or schedule.merge_at is None:
        return base
    return tables.Merged(base, schedule.merge_at, schedule.merge)


def _tail(recipe: Recipe, base: Table, *, after: int) -> Table | None:
    """The table of a walk with fewer steps from step `after` on; None if they stay as they are."""
    tail, steps = recipe.sampler.tail, num_steps(recipe)
    if tail is None or (tail.ratio is None and tail.steps is None) or after >= steps:
        return None
    number = tail.steps if tail.steps is not None else flash_steps(steps, after, tail.ratio or 1.0)
    return tables.Compressed(after, number, base)


def _window(recipe: Recipe, iteration: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(steps that draw noise, those of them that are trained), without a last step that draws no noise.

    Raises RecipeError if no trained step is left.
    """
    steps, trained = _window_steps(recipe, iteration)
    if draws_at_the_end(recipe.sampler.step, recipe.model):
        return steps, trained
    last = num_steps(recipe) - 1
    left = tuple(step for step in steps if step != last), tuple(step for step in trained if step != last)
    if trained and not left[1]:
        problem = f"iteration {iteration} would train only step {last}, the last, where {recipe.sampler.step} draws no"
        remedy = f"keep step {last} out of the window, or choose another sampler.step"
        raise RecipeError("sampler.window", f"{problem} noise", remedy)
    return left


def _window_steps(recipe: Recipe, iteration: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The steps of the recipe's window: (steps that draw noise, steps that are trained)."""
    window = recipe.sampler.window
    run = {"seed": windows.seed_of(recipe.seed, iteration), "iteration": iteration}
    if not isinstance(window, OwnPart):
        given = build_part("window", window, run)(num_steps(recipe))
        return (given.stochastic, given.trained) if isinstance(given, windows.Roles) else (given, given)
    with report_errors("sampler.window.kind", window.kind):
        given = build_part("window", window, run)(num_steps(recipe))
    return check_window("sampler.window.kind", window.kind, given, num_steps(recipe))
