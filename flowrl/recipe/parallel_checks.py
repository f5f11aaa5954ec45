"""What a run over several processes does not do."""

from collections.abc import Iterator

from flowrl.kinds import kind_of
from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.schema import Recipe


def check_ranks(recipe: Recipe) -> Iterator[RecipeError]:
    """What a run over several ranks cannot do: what goes on from one iteration to the next on one of them."""
    remedy = "leave it out, or train in one process"
    for at in recipe.parts():
        train = at.train
        yield from kind_of(at).check_ranks(at)
        if train.store is not None:
            yield RecipeError("train.store", "given, but ranks do not share what is stored", remedy)
        if train.micro_batch == "auto":
            problem = "got 'auto', but memory that runs out on one rank leaves the others waiting"
            yield RecipeError("train.micro_batch", problem, "give a number, or train in one process")
        if train.pool > 1:
            yield RecipeError("train.pool", f"got {train.pool}, but ranks draw whole prompts", remedy)
        if train.share is not None:
            problem = f"got {show(train.source)}, but over ranks samples are drawn or come from files, not both"
            yield RecipeError("train.source", problem, remedy)
