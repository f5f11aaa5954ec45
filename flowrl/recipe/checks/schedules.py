"""What a sigma table and a cheaper tail of it read, and how many steps they leave; checked before torch loads."""

from collections.abc import Iterator

from flowrl.recipe.errors import RecipeError
from flowrl.recipe.kinds import check_keys
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import Own, key_table

# What each kind of schedule reads; True marks what it cannot do without.
MERGING = {"merge_at": False, "merge": False}
SCHEDULE_KEYS = {kind: read | MERGING for kind, read in key_table("schedule").items()}


def num_steps(recipe: Recipe) -> int:
    """Steps of a training walk: sampler.steps, less those that schedule.merge joins to others."""
    return recipe.sampler.steps - (recipe.sampler.schedule.merge or 1) + 1


def check_schedule(recipe: Recipe) -> Iterator[RecipeError]:
    """Everything about `sampler.schedule` and `sampler.tail` that cannot work."""
    schedule = recipe.sampler.schedule
    if not isinstance(schedule, Own):
        yield from check_keys("sampler.schedule", schedule, schedule.kind, SCHEDULE_KEYS[schedule.kind])
    yield from _merge(recipe)
    yield from _tail(recipe)


def _merge(recipe: Recipe) -> Iterator[RecipeError]:
    schedule, steps = recipe.sampler.schedule, recipe.sampler.steps
    if (schedule.merge is None) != (schedule.merge_at is None):
        missing = "merge" if schedule.merge is None else "merge_at"
        given = "merge_at" if schedule.merge is None else "merge"
        remedy = f"set sampler.schedule.{missing}=VALUE, or sampler.schedule.{given}=null"
        yield RecipeError(f"sampler.schedule.{missing}", f"missing, {given} is given and needs it", remedy)
    elif schedule.merge is not None and schedule.merge_at is not None and schedule.merge_at + schedule.merge > steps:
        last = schedule.merge_at + schedule.merge - 1
        problem = f"got {schedule.merge}, so that steps {schedule.merge_at} to {last} become one of {steps}"
        yield RecipeError("sampler.schedule.merge", problem, "lower it or merge_at, or raise sampler.steps")


def _tail(recipe: Recipe) -> Iterator[RecipeError]:
    tail = recipe.sampler.tail
    if tail is None:
        return
    if tail.ratio is not None and tail.steps is not None:
        problem = f"got {tail.steps}, but ratio {tail.ratio:g} says how many steps there are too"
        yield RecipeError("sampler.tail.steps", problem, "set one of sampler.tail.steps and sampler.tail.ratio to null")
    if tail.ratio is None and tail.steps is None and tail.solver == "euler":
        problem = "got neither ratio nor steps nor another solver, so that it changes nothing"
        yield RecipeError("sampler.tail", problem, "set sampler.tail={ratio: 0.4, solver: dpmpp_2m}, or to null")
