"""The key `freeze`: parts of a model that a training of all weights leaves as they are."""

from collections.abc import Iterator

from flowrl.recipe.errors import RecipeError
from flowrl.recipe.keys.lora import check_pattern
from flowrl.recipe.schema import Recipe

TOWER = "tower"  # all that reads pictures, videos and sounds


def check_freeze(recipe: Recipe) -> Iterator[RecipeError]:
    """Parts that nothing is known of, and any beside adapters, which leave all weights as they are."""
    if recipe.freeze and recipe.lora is not None:
        yield RecipeError("freeze", "given, but lora trains none of the model's own weights", "set freeze=[]")
    for part in recipe.freeze:
        yield from check_pattern("freeze", part, (TOWER,), "tower or match:REGEX")
