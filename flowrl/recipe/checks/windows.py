"""Does a window fit its walk? Told by arithmetic alone, before torch is loaded."""

from collections.abc import Iterator

from flowrl.recipe.checks.schedules import num_steps
from flowrl.recipe.errors import RecipeError, wrong_value
from flowrl.recipe.keys.sampling import Window
from flowrl.recipe.kinds import check_keys
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import Own, key_table

# What each kind of window reads; True marks what it cannot do without.
WINDOW_KEYS = key_table("window")


def drawn(window: Window | Own, steps: int) -> tuple[int, int]:
    """The range of steps that a window of `steps` may ever draw at."""
    if isinstance(window, Own):
        return 0, steps
    if window.kind == "all":
        return 0, steps - (1 if window.skip_last is None else window.skip_last)
    if window.kind in ("first", "frozen"):
        low = window.low or 0
        return low, low + (window.size or 1)
    if window.steps:
        return window.steps[0], window.steps[-1] + 1
    return window.low or 0, steps - 1 if window.high is None else window.high


def check_window(recipe: Recipe) -> Iterator[RecipeError]:
    """Everything about `sampler.window` that cannot work."""
    window = recipe.sampler.window
    if isinstance(window, Own):
        return
    misplaced = list(check_keys("sampler.window", window, window.kind, WINDOW_KEYS[window.kind]))
    if window.steps is not None and not misplaced:
        yield from _listed(window, num_steps(recipe))
    else:
        yield from misplaced or _range(window, num_steps(recipe))
    if window.draw_last:
        yield from _draw_last(recipe)


def _listed(window: Window, steps: int) -> Iterator[RecipeError]:
    given = window.steps or []
    if not given or given != sorted(set(given)) or given[0] < 0 or given[-1] >= steps:
        accepted = f"steps that rise without repeats, of 0 to {steps - 1}, such as [1, 2, 3]"
        yield wrong_value("sampler.window.steps", given, accepted)
    elif window.low is not None or window.high is not None:
        place = "low" if window.low is not None else "high"
        problem = f"got {getattr(window, place)}, but sampler.window.steps says which steps there are"
        yield RecipeError(f"sampler.window.{place}", problem, f"set sampler.window.{place}=null")
    elif (window.size or 1) > len(given):
        problem = f"got {window.size}, but sampler.window.steps holds {len(given)}"
        yield RecipeError("sampler.window.size", problem, "lower the size, or list more steps")


def _draw_last(recipe: Recipe) -> Iterator[RecipeError]:
    """Noise at the steps that are not trained, where something else is to happen there."""
    tree, remedy = recipe.sampler.tree, "set sampler.window.draw_last=false"
    if recipe.sampler.window.skip_last == 0:
        yield RecipeError("sampler.window.draw_last", "got true, but skip_last 0 trains every step", remedy)
    elif tree is not None and tree.kind == "per_step":
        problem = "got true, but in a tree per_step all that follows a draw is the ODE's"
        yield RecipeError("sampler.window.draw_last", problem, remedy)
    elif recipe.sampler.tail is not None:
        problem = "got true, but sampler.tail walks the last steps by a solver of the ODE"
        yield RecipeError("sampler.window.draw_last", problem, remedy)


def _range(window: Window, steps: int) -> Iterator[RecipeError]:
    if window.kind == "all":
        skip = 1 if window.skip_last is None else window.skip_last
        if skip >= steps:
            problem = f"got {skip}, accepted: below sampler.steps = {steps}"
            yield RecipeError("sampler.window.skip_last", problem, "raise sampler.steps or lower skip_last")
        return
    if window.kind == "fraction":
        if int((steps - 1) * (window.share or 0)) < 1:
            problem = f"got {window.share:g}, which is less than one of the {steps - 1} steps that draw"
            yield RecipeError("sampler.window.share", problem, "raise it or sampler.steps")
        return
    low, high = window.low or 0, window.high
    if high is None:
        high = steps if window.kind in ("first", "frozen") else steps - 1
    if high > steps:
        problem = f"got {high}, accepted: at most sampler.steps = {steps}"
        yield RecipeError("sampler.window.high", problem, "lower it or raise sampler.steps")
    elif window.size is not None and window.size > high - low:
        problem = f"got {window.size}, but the range of steps [{low}, {high}) holds {max(high - low, 0)}"
        yield RecipeError("sampler.window.size", problem, "lower the size, or widen sampler.window.low / high / steps")
    elif window.shortest is not None and window.interval is not None and window.shortest > window.interval:
        problem = f"got {window.shortest}, accepted: at most sampler.window.interval = {window.interval}"
        yield RecipeError("sampler.window.shortest", problem, "lower it or raise the interval")
