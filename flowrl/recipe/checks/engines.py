"""What does not go along with a server that draws the samples of training."""

from collections.abc import Iterator

from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.keys.generation import GenerationKeys
from flowrl.recipe.schema import Recipe


def check_engine(recipe: Recipe, generation: GenerationKeys) -> Iterator[RecipeError]:
    """What a server cannot draw, or cannot tell of what it drew."""
    engine = recipe.rollout.engine
    if engine is None:
        return
    place, off = "rollout.engine", "set rollout.engine=null"
    for name in ("tree", "again", "force", "partial"):
        if getattr(generation, name) is not None:
            problem = f"got {engine.use!r}, but with generation.{name} the model here draws in more than one go"
            yield RecipeError(place, problem, f"{off}, or generation.{name}=null")
    if recipe.rollout.dtype is not None:
        problem = f"got {engine.use!r} beside rollout.dtype={show(recipe.rollout.dtype)}, a copy that draws here"
        yield RecipeError(place, problem, "set rollout.dtype=null: a server's precision is its own affair")
    if engine.use == "vllm" and recipe.full:
        problem = "got 'vllm' with full: true, but it takes the weights of a run as adapters"
        yield RecipeError(f"{place}.use", problem, "train a lora, or set rollout.engine.use=sglang")
    objective, credit = recipe.objective, recipe.advantage.credit
    needs = {
        "objective.entropy_share": getattr(objective, "entropy_share", None) is not None,
        "objective.weight=inverse_entropy": getattr(objective, "weight", None) == "inverse_entropy",
        "advantage.credit=optimal_token": credit.kind == "optimal_token",
    }
    for name, wanted in needs.items():
        if wanted:
            problem = f"got {engine.use!r}, but {name} reads the distributions of drawn tokens, which no server tells"
            yield RecipeError(place, problem, off)
