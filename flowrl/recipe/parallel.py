"""The keys of a run over several processes, and what such a run does not do yet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flowrl.recipe.base import Strict, key
from flowrl.recipe.errors import RecipeError, show

if TYPE_CHECKING:
    from flowrl.recipe.schema import Recipe


class ParallelKeys(Strict):
    """Several processes that train one model together, each on its own device (docs/scale.md).

    ranks: how many there have to be (null: as many as are started, by `--ranks N` or torchrun). Numbers of the recipe
    are those of all ranks together: train.prompts are shared out, and the run is the one that a single process does.
    wait: seconds that a rank waits for the slowest before the run ends, with everything saved.
    """

    ranks: int | None = key(None, "a whole number >= 1 or null", ge=1)
    wait: float = key(600.0, "a number > 0, in seconds", gt=0)


def check_ranks(recipe: Recipe) -> Iterator[RecipeError]:
    """What a run over several ranks cannot do: what goes on from one iteration to the next on one of them."""
    remedy = "leave it out, or train in one process"
    for at in recipe.parts():
        train, goes_on = at.train, getattr(at.generation, "partial", None)
        if goes_on is not None:
            yield RecipeError("generation.partial", f"got {goes_on}, which ranks do not share", remedy)
        if train.store is not None:
            yield RecipeError("train.store", "given, but ranks do not share what is stored", remedy)
        if train.pool > 1:
            yield RecipeError("train.pool", f"got {train.pool}, but ranks draw whole prompts", remedy)
        if train.share is not None:
            problem = f"got {show(train.source)}, but over ranks samples are drawn or come from files, not both"
            yield RecipeError("train.source", problem, remedy)
        if at.rollout.engine is not None:
            yield RecipeError("rollout.engine", "given, but ranks draw for themselves", remedy)
