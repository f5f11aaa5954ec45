"""What a run over several processes does not do."""

from collections.abc import Iterator

from flowrl.kinds import kind_of
from flowrl.recipe.checks.shards import check_shares
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.schema import Recipe


def check_ranks(recipe: Recipe, size: int) -> Iterator[RecipeError]:
    """What a run over so many ranks cannot do: what goes on from one iteration to the next on one of them, what other
    processes draw, and what one rank may have to do again while the others wait for a part of its weights."""
    if size == 1:
        return
    yield from check_shares(recipe, size)
    for at in recipe.parts():
        yield from kind_of(at).check_ranks(at)
        if at.train.micro_batch == "auto" and recipe.parallel.kind == "fsdp":
            problem = "got 'auto', but where ranks share out the weights, one whose memory runs out in a block's "
            problem += "forward leaves the others waiting within it"
            yield RecipeError("train.micro_batch", problem, "give a number, or set parallel.kind=replicate")
