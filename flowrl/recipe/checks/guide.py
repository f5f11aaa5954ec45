"""Whether a reward that steers samples fits its recipe."""

from collections.abc import Iterator
from pathlib import Path

from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.keys.guide import GuideKeys
from flowrl.recipe.schema import Recipe


def guided(recipe: Recipe) -> Recipe:
    """With sampler.guide.path absolute where it is a folder, so that the recipe means the same from every directory."""
    guide = recipe.sampler.guide
    if guide is None or not (folder := Path(guide.path).expanduser()).is_dir():
        return recipe
    guide = guide.model_copy(update={"path": str(folder.resolve())})
    return recipe.model_copy(update={"sampler": recipe.sampler.model_copy(update={"guide": guide})})


def check_guide(guide: GuideKeys | None) -> Iterator[RecipeError]:
    """What no folder of a reward can be."""
    if guide is not None and Path(guide.path).expanduser().is_file():
        problem = f"got {show(guide.path)}, a file; accepted: the folder that flowrl train-latent-reward wrote"
        yield RecipeError("sampler.guide.path", problem, "give the folder")
