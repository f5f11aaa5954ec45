"""Whether the kernels that a recipe chooses for attention are there, and fit it."""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec

from flowrl.recipe.errors import RecipeError
from flowrl.recipe.keys.attention import Needs
from flowrl.recipe.schema import Recipe


def check_attention(recipe: Recipe, known: Mapping[str, Needs]) -> Iterator[RecipeError]:
    """What is not among `known`, and what it needs that is not there."""
    if recipe.attention is None:
        return
    place, name, remedy = "attention.backend", recipe.attention.backend, "or set attention=null"
    needs = known.get(name)
    if needs is None:
        problem = f"got {name!r}, which is none of {', '.join(known)}, the backends of such a model"
        yield RecipeError(place, problem, f"give one of them, {remedy}")
        return
    if needs.package is not None and find_spec(needs.package) is None:
        problem = f"got {name!r}, which needs the package {needs.package}, and it is not installed"
        yield RecipeError(place, problem, f"pip install {needs.package.replace('_', '-')}, {remedy}")
    if needs.gpu and recipe.device in ("cpu", "mps"):
        problem = f"got {name!r}, which needs a CUDA GPU, with device={recipe.device}"
        yield RecipeError(place, problem, f"set device=cuda, {remedy}")
    if needs.half and recipe.dtype.model == "float32":
        problem = f"got {name!r}, which computes in half precision alone, with dtype.model=float32"
        yield RecipeError(place, problem, f"set dtype.model=bfloat16, {remedy}")
