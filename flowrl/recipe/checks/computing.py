"""What adapters and float32 products are computed in (dtype.adapters, dtype.tf32)."""

from collections.abc import Iterator

from flowrl.recipe.errors import RecipeError
from flowrl.recipe.schema import Recipe


def adapters_as_model(recipe: Recipe, device: str) -> bool:
    """Whether a recipe's adapters are multiplied in the model's own precision on a device of this type.

    auto: on a GPU, for models in bfloat16, where products in float32 take several times as long and keep a float32 copy
    of every input. On a CPU numbers stay what they are without.
    """
    asked, half = recipe.dtype.adapters, recipe.dtype.model != "float32"
    if recipe.lora is None or not half or recipe.parallel.kind == "fsdp":
        return False
    return asked == "model" or (asked == "auto" and device == "cuda" and recipe.dtype.model == "bfloat16")


def check_computing(recipe: Recipe) -> Iterator[RecipeError]:
    """Adapters in the model's precision where there are none, or that was not tried."""
    if recipe.dtype.adapters != "model":
        return
    if recipe.lora is None:
        problem = "got 'model', but full: true has no adapters"
        yield RecipeError("dtype.adapters", problem, "set dtype.adapters=auto, or train a lora")
    if recipe.parallel.kind == "fsdp":
        problem = "got 'model', which has not been tried where ranks share out the weights"
        yield RecipeError("dtype.adapters", problem, "set dtype.adapters=float32, or parallel.kind=replicate")
