"""The keys of `sampler.guide`: a reward of noisy latents that steers evaluations and samples."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flowrl.recipe.base import Strict, key
from flowrl.recipe.errors import RecipeError, show

if TYPE_CHECKING:
    from flowrl.recipe.schema import Recipe


class GuideKeys(Strict):
    """A reward of noisy latents that steers walks from which nothing is trained (Flow-NRG, arXiv:2501.13918).

    path: a folder that `flowrl train-latent-reward` wrote. weight: of the reward: samples are drawn from their density
    times exp(weight * reward). below: steps that begin at a noise level above are left alone, where the gradient's
    factor s / (1 - s) has no bound, and the first step is in any case.
    """

    path: str = key(..., "a folder that flowrl train-latent-reward wrote", min_length=1)
    weight: float = key(1.0, "a number")
    below: float = key(0.95, "a number in (0, 1)", gt=0, lt=1)

    def __str__(self) -> str:
        return f"guided by {self.path} (weight {self.weight:g}, below {self.below:g})"


def guided(recipe: "Recipe") -> "Recipe":
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
