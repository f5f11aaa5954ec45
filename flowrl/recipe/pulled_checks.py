"""Does a loss that follows the gradient of the rewards fit the rest of its recipe?"""

from collections.abc import Iterator

from flowrl import names
from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.noised import Levels, Loss
from flowrl.recipe.schema import Recipe

LEVELS = {"draft": ("walk", "tail"), "refl": ("walk", "tail"), "srpo": ("align",)}


def check_pulled(recipe: Recipe, loss: Loss) -> Iterator[RecipeError]:
    """Everything about rewards without a gradient, states that are not visited, and keys that nothing reads."""
    yield from _rewards(recipe, loss)
    levels = recipe.sampler.levels or Levels()
    if levels.kind not in LEVELS[loss.kind]:
        accepted = " or ".join(LEVELS[loss.kind])
        problem = f"got {levels.kind!r}, but loss {loss.kind!r} looks at states of kind {accepted}"
        yield RecipeError("sampler.levels.kind", problem, f"set sampler.levels={{kind: {LEVELS[loss.kind][0]}}}")
    if recipe.sampler.tail is not None and recipe.sampler.tail.solver != "euler" and loss.kind != "srpo":
        problem = f"got {show(str(recipe.sampler.tail.solver))}, but a gradient goes back through steps of euler alone"
        yield RecipeError("sampler.tail.solver", problem, "set sampler.tail=null")
    if recipe.objective.kl > 0 or "objective.kl" in recipe.curves:
        problem = f"got {recipe.objective.kl:g}, but loss {loss.kind!r} pays no divergence"
        yield RecipeError("objective.kl", problem, "set objective.kl=0, and train fewer iterations or at a lower lr")
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
    if levels is not None and levels.kind in ("tail", "align"):
        problem = f"got {levels.kind!r}, but loss {loss.kind!r} looks at noised samples"
        yield RecipeError("sampler.levels.kind", problem, "set sampler.levels={kind: uniform}")


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
