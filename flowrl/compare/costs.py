"""The cost of a grid before anything runs: calls per iteration, iterations, and time where a pace is known."""

from collections.abc import Sequence
from pathlib import Path

from flowrl.compare.execute import is_done
from flowrl.compare.grid import UNLIMITED, Cell
from flowrl.compare.tables import TextTable
from flowrl.planning.costs import arithmetic
from flowrl.planning.duration import Pace, duration
from flowrl.recipe.schema import Recipe
from flowrl.terminal import duration_text


def plan_table(cells: Sequence[Cell], pace: Pace | None, num_heldout: int) -> TextTable:
    """One row per variant: seeds, iterations, forwards per iteration in rollout and training, time per run."""
    heads = ["variant", "seeds", "done", "iterations", "rollout forwards", "training forwards", "time per run"]
    rows = []
    for name in dict.fromkeys(cell.variant for cell in cells):
        mine = [cell for cell in cells if cell.variant == name]
        recipe = mine[0].recipe
        rollout, train = _forwards_text(recipe)
        done = sum(is_done(cell) for cell in mine)
        cost = [_iterations_text(recipe), rollout, train, _run_time_text(recipe, pace, num_heldout)]
        rows.append([name, str(len(mine)), str(done), *cost])
    return heads, rows


def remaining_time(cells: Sequence[Cell], pace: Pace | None, num_heldout: int, jobs: int) -> str:
    """How long the remaining runs take, in words."""
    left = [cell for cell in cells if not is_done(cell)]
    known = [_run_seconds(cell.recipe, pace, num_heldout) for cell in left]
    if any(seconds is None for seconds in known):
        return f"{len(left)} runs are left; give --time-from RUN for an estimate of their time"
    seconds = sum(s for s in known if s is not None) / jobs
    at_once = f", {jobs} at once" if jobs > 1 else ""
    not_counted = "" if pace is not None else ", evaluations and loading not counted"
    return f"{len(left)} runs are left{at_once}: about {duration_text(seconds)}{not_counted}"


def _run_seconds(recipe: Recipe, pace: Pace | None, num_heldout: int) -> float | None:
    return recipe.train.seconds if pace is None else duration(recipe, pace, num_heldout).total


def _run_time_text(recipe: Recipe, pace: Pace | None, num_heldout: int) -> str:
    seconds = _run_seconds(recipe, pace, num_heldout)
    return "\N{EN DASH}" if seconds is None else duration_text(seconds)


def _iterations_text(recipe: Recipe) -> str:
    """The number of iterations, or the time limit."""
    if recipe.train.seconds is None:
        return str(recipe.train.iterations)
    limit = f"{recipe.train.seconds:g} s"
    return limit if recipe.train.iterations == UNLIMITED else f"{limit} or {recipe.train.iterations}"


def _forwards_text(recipe: Recipe) -> tuple[str, str]:
    """Row-forwards (or token-forwards) per iteration in rollout and training, means over the first 100 iterations."""
    costs = [arithmetic(recipe, i) for i in range(min(recipe.train.iterations, 100))]
    rollout = sum(c.drawing_forwards for c in costs) / len(costs)
    train = sum(c.train_forwards + c.unlearned_forwards for c in costs) / len(costs)
    return f"{rollout:,.0f}", f"{train:,.0f}"


def finished_run(cells: Sequence[Cell]) -> Path | None:
    """A finished run of the grid; the others are expected to have its pace."""
    return next((cell.folder for cell in cells if is_done(cell)), None)
