"""What a recipe may say of scores that are reshaped."""

from collections.abc import Iterator

from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.keys.rewards import SHAPE_KEYS, Shape
from flowrl.recipe.schema import Recipe


def check_shape(place: str, shape: Shape) -> Iterator[RecipeError]:
    """Keys of another kind than the shape's, the one that is missing, and lengths that no completion has."""
    read = SHAPE_KEYS[shape.kind]
    for name in sorted({name for names in SHAPE_KEYS.values() for name in names} - set(read)):
        if (value := getattr(shape, name)) is not None:
            problem = f"got {show(value)}, which {shape.kind!r} does not read; accepted: {', '.join(read)}"
            yield RecipeError(f"{place}.{name}", problem, f"remove {place}.{name}")
    if shape.kind == "cosine_length" and shape.limit is None:
        problem = "missing, the length at which the cosine has fallen"
        yield RecipeError(f"{place}.limit", problem, f"set {place}.limit, usually to generation.max_new_tokens")
    if shape.kind == "length_bonus" and (shape.shortest or 0) > (shape.longest or 10**9):
        problem = f"got {shape.shortest}, accepted: at most {place}.longest, {shape.longest}"
        yield RecipeError(f"{place}.shortest", problem, "lower it")


def refuse_shapes(recipe: Recipe) -> Iterator[RecipeError]:
    """Scores that are reshaped by the length of a completion, of samples that have none."""
    for name, spec in recipe.rewards.items():
        if spec.shape is not None:
            problem = f"got {spec.shape.kind!r}, but only completions have a length"
            yield RecipeError(f"rewards.{name}.shape", problem, f"remove rewards.{name}.shape, or set generation")
