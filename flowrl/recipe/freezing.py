"""The key `freeze`: parts of a model that a training of all weights leaves as they are."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from flowrl import names
from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.lora import MATCH

if TYPE_CHECKING:
    from flowrl.recipe.schema import Recipe

TOWER = "tower"  # all that reads pictures, videos and sounds


def check_freeze(recipe: "Recipe") -> Iterator[RecipeError]:
    """Parts that nothing is known of, and any beside adapters, which leave all weights as they are."""
    if recipe.freeze and recipe.lora is not None:
        yield RecipeError("freeze", "given, but lora trains none of the model's own weights", "set freeze=[]")
    for part in recipe.freeze:
        pattern = part.removeprefix(MATCH)
        if part != TOWER and pattern == part:
            problem = f"got {show(part)}, accepted: tower or match:REGEX"
            yield RecipeError("freeze", problem, f"choose one{names.hint(part, (TOWER,))}")
        try:
            re.compile(pattern)
        except re.error as error:
            yield RecipeError("freeze", f"{show(pattern)} is no regular expression ({error})", "correct it")
