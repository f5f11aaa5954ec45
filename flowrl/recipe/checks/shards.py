"""What a run whose ranks hold parts of the weights does not do, and keys that only such a run has."""

from collections.abc import Iterator

from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.keys.parallel import ParallelKeys
from flowrl.recipe.schema import Recipe

OF_PARTS = ("blocks", "reshard", "offload", "mixed_precision", "sampling")


def check_parallel(recipe: Recipe) -> Iterator[RecipeError]:
    """Keys of parallel that do not go together, or with other keys."""
    keys, plain = recipe.parallel, ParallelKeys()
    if keys.kind == "replicate":
        for name in OF_PARTS:
            if (value := getattr(keys, name)) != getattr(plain, name):
                problem = f"got {show(value)}, but every rank holds all weights"
                yield RecipeError(f"parallel.{name}", problem, "set parallel.kind=fsdp, or leave it out")
        return
    yield from _whole_alone(recipe)


def check_shares(recipe: Recipe, size: int) -> Iterator[RecipeError]:
    """A recipe whose prompts do not suffice for so many ranks."""
    for at in recipe.parts():
        if recipe.parallel.kind == "fsdp" and at.train.drawn < size:
            problem = f"got {at.train.prompts}, but {size} ranks share out the weights, and one would draw nothing"
            yield RecipeError("train.prompts", problem, f"accepted: {size} or more, or parallel.kind=replicate")


def _whole_alone(recipe: Recipe) -> Iterator[RecipeError]:
    """What needs whole weights, or has not been tried on parts of them."""
    remedy = "leave it out, or set parallel.kind=replicate"
    moves = "moves whole weights, of which a rank has a part: see parallel.offload"
    copies = "would part the average from the weights, whose parts it lies beside: parallel.offload has both on the CPU"
    given = {
        "rollout.dtype": (recipe.rollout.dtype, "makes its copy of whole weights, of which a rank has a part"),
        "sampler.guide": (
            recipe.sampler.guide,
            "sends gradients through the model as it samples, which parts would keep",
        ),
        "offload": (recipe.offload, moves),
        "block_offload": (recipe.block_offload, moves),
        "quantize": (
            recipe.quantize,
            "makes weights that torchao does not cut into parts; nf4 and gguf have not been tried so",
        ),
        "train.ema_in_host": (recipe.train.ema_in_host, copies),
        "train.optimizer": (
            recipe.train.optimizer == "adamw_8bit",
            "has not been tried where ranks share out the weights",
        ),
    }
    for place, (there, why) in given.items():
        if there:
            yield RecipeError(place, f"given, but it {why}", remedy)
