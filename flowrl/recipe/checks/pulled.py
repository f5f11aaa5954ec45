"""Does a loss that follows the gradient of the rewards fit the rest of its recipe?"""

from collections.abc import Iterator

from flowrl import names
from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.keys.noised import Levels, Loss
from flowrl.recipe.schema import Recipe

BACK = ("walk", "tail", "leap", "bridge", "spaced")  # what a gradient goes back through
LEVELS = {"draft": BACK, "match": BACK, "refl": ("walk", "tail", "again"), "srpo": ("align",)}


def check_pulled(recipe: Recipe, loss: Loss) -> Iterator[RecipeError]:
    """Everything about rewards without a gradient, states that are not visited, and keys that nothing reads."""
    yield from _rewards(recipe, loss)
    levels = recipe.sampler.levels or Levels()
    if levels.kind not in LEVELS[loss.kind]:
        *first, last = LEVELS[loss.kind]
        accepted = f"{', '.join(first)} or {last}" if first else last
        problem = f"got {levels.kind!r}, but loss {loss.kind!r} looks at states of kind {accepted}"
        yield RecipeError("sampler.levels.kind", problem, f"set sampler.levels={{kind: {LEVELS[loss.kind][0]}}}")
    if levels.kind in ("leap", "bridge") and loss.nested is False:
        problem = f"got false, but levels of kind {levels.kind!r} let a share of the gradient through"
        yield RecipeError("objective.loss.nested", problem, "set it to true, or sampler.levels={kind: walk, number: 3}")
    if loss.tau is not None and levels.kind != "leap":
        problem = f"got {loss.tau:g}, but levels of kind {levels.kind!r} make no leaps whose distance it would bound"
        yield RecipeError("objective.loss.tau", problem, "set objective.loss.tau=null, or sampler.levels={kind: leap}")
    if loss.kind == "match" and loss.target is None:
        problem = "missing, a list of rewards that good samples have"
        yield RecipeError("objective.loss.target", problem, "set objective.loss.target=[0.2, 0.3]")
    if recipe.sampler.tail is not None and recipe.sampler.tail.solver != "euler" and loss.kind != "srpo":
        problem = f"got {show(str(recipe.sampler.tail.solver))}, but a gradient goes back through steps of euler alone"
        yield RecipeError("sampler.tail.solver", problem, "set sampler.tail=null")
    train = recipe.train
    for name, value, off in (
        ("keep", train.keep, None),
        ("refill", train.refill, 0),
        ("drop_silent", train.drop_silent, False),
    ):
        if value != off:
            problem = f"got {show(value)}, but loss {loss.kind!r} reads no advantage to choose samples by"
            yield RecipeError(
                f"train.{name}", problem, f"set train.{name}={'null' if off is None else str(off).lower()}"
            )
    if loss.kind == "srpo" and (loss.positive is None) != (loss.negative is None):
        missing = "positive" if loss.positive is None else "negative"
        problem = "missing, the reward is relative to words of both sides"
        yield RecipeError(f"objective.loss.{missing}", problem, "give both, or none for the reward itself")


def refuse_visits(recipe: Recipe, loss: Loss) -> Iterator[RecipeError]:
    """States that only the gradient of a reward can be taken at."""
    levels = recipe.sampler.levels
    if levels is None:
        return
    if levels.kind in ("tail", "again", "leap", "bridge", "spaced", "align"):
        problem = f"got {levels.kind!r}, but loss {loss.kind!r} looks at noised samples"
        yield RecipeError("sampler.levels.kind", problem, "set sampler.levels={kind: uniform}")
    for name in ("bias", "whole"):
        if (value := getattr(levels, name)) and levels.kind == "walk":
            problem = f"got {show(value)}, but loss {loss.kind!r} follows no gradient of rewards"
            yield RecipeError(f"sampler.levels.{name}", problem, f"set sampler.levels.{name}=null")


def _rewards(recipe: Recipe, loss: Loss) -> Iterator[RecipeError]:
    for name, spec in recipe.rewards.items():
        if not spec.weight:
            continue
        try:
            able = names.find(spec.use, names.rewards()).facts.get("differentiable")
        except names.UserError:
            continue  # told elsewhere
        if not able:
            known = sorted(n for n, entry in names.rewards().items() if entry.facts.get("differentiable"))
            problem = f"got {spec.use!r}, which has no gradient, and loss {loss.kind!r} follows the rewards' own"
            remedy = f"accepted: {', '.join(known)}, or set rewards.{name}.weight=0 for a witness"
            yield RecipeError(f"rewards.{name}.use", problem, remedy)
        elif spec.gate is not None:
            problem = f"got one by {spec.gate.by!r}, but a gradient has no gates"
            yield RecipeError(f"rewards.{name}.gate", problem, f"set rewards.{name}.gate=null")
