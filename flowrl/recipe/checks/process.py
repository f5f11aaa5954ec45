"""What rewards of steps need of a recipe, which is known once the rewards are."""

from collections.abc import Collection, Iterator

from flowrl.recipe.errors import RecipeError
from flowrl.recipe.keys.credit import OF_TREES
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import Own


def check_process(recipe: Recipe, process: Collection[str]) -> None:
    """Raises RecipeError for process rewards, by name, that a recipe's credit cannot use, or credit without any."""
    for error in _problems(recipe, process):
        raise error


def _problems(recipe: Recipe, process: Collection[str]) -> Iterator[RecipeError]:
    advantage = recipe.advantage
    if isinstance(advantage, Own) or (kind := advantage.credit.kind) in ("broadcast", *OF_TREES):
        return
    trained = [name for name in process if recipe.rewards[name].weight]
    if kind == "step" and not trained:
        problem = "got 'step', but no reward that counts gives values of steps"
        remedy = "add one, such as worked_steps, or set advantage.credit=broadcast"
        yield RecipeError("advantage.credit.kind", problem, remedy)
    for name in trained:
        for part in ("gate", "shape"):
            if getattr(recipe.rewards[name], part) is not None:
                place, problem = f"rewards.{name}.{part}", f"given, but advantage.credit {kind!r} reads single steps"
                yield RecipeError(place, problem, f"remove {place}")
        if kind == "flow":
            problem = "gives values of steps, but flows are in proportion to the reward of a whole text"
            yield RecipeError(f"rewards.{name}", problem, f"set rewards.{name}.weight=0, or remove it")
            continue
        raw = advantage.combine == "sum" and advantage.baseline == "none" and advantage.scale in ("none", "whiten")
        if kind != "step" and not raw:
            problem = f"gives values of steps, which advantage.credit {kind!r} adds up as they are"
            remedy = "set advantage.combine=sum, baseline=none and scale=whiten, or advantage.credit={kind: step}"
            yield RecipeError(f"rewards.{name}", problem, remedy)
