"""The plan of an iteration and of an evaluation, made of a recipe and the number of the iteration alone."""

from typing import Any

from flowrl.recipe.errors import RecipeError
from flowrl.recipe.schedules import num_steps
from flowrl.recipe.schema import Recipe
from flowrl.recipe.steps import draws_at_the_end
from samplers import tables, windows
from samplers.plan import Own, Plan, Table
from samplers.schedules import flash_steps
from samplers.trees import Branching, PerStep

AnyPlan = Plan | Branching | PerStep


def walk(recipe: Recipe, iteration: int) -> AnyPlan:
    """What the denoising steps of a training iteration do."""
    sampler, tree = recipe.sampler, recipe.sampler.tree
    steps, trained = _window(recipe, iteration)
    table = _merged(recipe, base_table(recipe))
    if tree is not None and tree.kind == "per_step":
        strides, anchors = tuple(tree.strides or [1]), tree.anchors or 1
        return PerStep(sampler.steps, trained, anchors, strides, bool(tree.per_anchor), table)
    tail = {
        "table": table,
        "tail": _tail(recipe, table, after=steps[-1] + 1),
        "solver": "euler" if sampler.tail is None else sampler.tail.solver,
        "share_noise": sampler.share_noise,
    }
    if tree is None:
        return Plan(sampler.steps, steps, trained, **tail)
    first = steps[0] if tree.splits_from == "window" else 0
    pruned = windows.pruned(
        tuple(tree.prune or ()),
        interval=tree.prune_interval,
        stop=tree.prune_stop or 0,
        iteration=iteration,
        until=tree.prune_until,
    )
    return Branching(
        sampler.steps,
        tuple(first + split for split in tree.splits or ()),
        tuple(tree.width_list()),
        steps,
        tuple(step for step in trained if step not in pruned),
        correlation=tree.correlation or 0.0,
        split_noise=tree.split_noise or 1.0,
        credit=tree.credit or "uniform",
        by_row=tree.compare != "leaves",
        **tail,
    )


def behind_splits(recipe: Recipe, iteration: int) -> list[list[bool]]:
    """Of each row of a prompt and each trained step: whether it is a decision behind the last split of its tree."""
    plan = walk(recipe, iteration)
    assert isinstance(plan, Branching)
    tree = plan.tree(recipe.train.group)
    own = [set(tree.segments[i].trained) for i in tree.rows]
    return [[step in steps and step > plan.splits[-1] for step in tree.trained] for steps in own]


def check_trained(recipe: Recipe) -> None:
    """Raises RecipeError where objective.weight or train.updates does not fit the number of trained steps, and where an
    iteration would train nothing."""
    weight, train = recipe.objective.weight, recipe.train
    for iteration in range(min(train.iterations, 1000)):
        _window(recipe, iteration)
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


def ode(recipe: Recipe) -> Plan:
    """The pure ODE walk of an evaluation."""
    number = recipe.eval.steps or recipe.sampler.steps
    return Plan(number, stochastic=(), trained=(), table=base_table(recipe), solver=recipe.eval.solver)


def base_table(recipe: Recipe) -> Table:
    """The sigma table of a recipe, before any steps are merged."""
    schedule = recipe.sampler.schedule
    match schedule.kind:
        case "linear":
            return tables.Linear()
        case "shifted":
            return tables.Shifted(schedule.shift or 1.0)
        case "exponential":
            return tables.Exponential(schedule.mu or 0.0)
        case "karras":
            return tables.Karras(rho=schedule.rho or 7.0)
    return Own()


def _merged(recipe: Recipe, base: Table) -> Table:
    schedule = recipe.sampler.schedule
    if schedule.merge is None or schedule.merge_at is None:
        return base
    return tables.Merged(base, schedule.merge_at, schedule.merge)


def _tail(recipe: Recipe, base: Table, *, after: int) -> Table | None:
    """The table of a walk whose steps from number `after` on are fewer; None where they stay as they are."""
    tail, steps = recipe.sampler.tail, num_steps(recipe)
    if tail is None or (tail.ratio is None and tail.steps is None) or after >= steps:
        return None
    number = tail.steps if tail.steps is not None else flash_steps(steps, after, tail.ratio or 1.0)
    return tables.Compressed(after, number, base)


def _window(recipe: Recipe, iteration: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(steps that draw noise, those of them that are trained), without a last step that has no noise to draw.

    Raises RecipeError where nothing is left.
    """
    steps, trained = _asked(recipe, iteration)
    if draws_at_the_end(recipe.sampler.step, recipe.model):
        return steps, trained
    last = num_steps(recipe) - 1
    left = tuple(step for step in steps if step != last), tuple(step for step in trained if step != last)
    if trained and not left[1]:
        problem = f"iteration {iteration} would train step {last} alone, the last, where {recipe.sampler.step} draws no"
        remedy = f"keep step {last} out of the window, or choose another sampler.step"
        raise RecipeError("sampler.window", f"{problem} noise", remedy)
    return left


def _asked(recipe: Recipe, iteration: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The steps that the recipe's window names."""
    window, steps = recipe.sampler.window, num_steps(recipe)
    if window.kind == "fraction":
        trained = windows.fraction(steps, share=window.share or 1.0, seed=windows.seed_of(recipe.seed, iteration))
        return windows.all_steps(steps), trained
    if window.kind == "all" and window.draw_last:
        return windows.all_steps(steps, skip_last=0), _anywhere(recipe, iteration)
    found = _adjacent(recipe, iteration) if window.slides else _anywhere(recipe, iteration)
    return found, found


def _anywhere(recipe: Recipe, iteration: int) -> tuple[int, ...]:
    window, steps = recipe.sampler.window, num_steps(recipe)
    size, low = window.size or 1, window.low or 0
    high = steps - 1 if window.high is None else window.high
    seed = windows.seed_of(recipe.seed, iteration)
    match window.kind:
        case "all":
            return windows.all_steps(steps, skip_last=1 if window.skip_last is None else window.skip_last)
        case "first":
            return windows.first(steps, size=size)
        case "frozen":
            return windows.frozen(steps, start=low, size=size)
        case "random" if window.steps is not None:
            return windows.random_steps(window.steps, size=size, seed=seed)
        case "random":
            return windows.random_range(steps, size=size, low=low, high=high, seed=seed)
    return windows.random_window(steps, size=size, low=low, high=high, seed=seed)


def _adjacent(recipe: Recipe, iteration: int) -> tuple[int, ...]:
    """A window that slides towards the data."""
    window, steps = recipe.sampler.window, num_steps(recipe)
    how: dict[str, Any] = {
        "size": window.size or 1,
        "interval": window.interval or 1,
        "stride": 1 if window.stride is None else window.stride,
        "iteration": iteration,
        "roll_back": window.roll_back is not False,
        "high": window.high,
    }
    match window.kind:
        case "decay":
            return windows.decay(steps, shortest=window.shortest or 1, **how)
        case "exp_decay":
            given = {name: value for name in ("rate", "hold") if (value := getattr(window, name)) is not None}
            return windows.exp_decay(steps, **how, **given)
    return windows.progressive(steps, **how)
