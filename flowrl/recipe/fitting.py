"""Keys about what takes memory and time: where weights rest, and how parts that are large for a moment work."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flowrl.recipe.base import Strict, key
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.tracking import Precision

if TYPE_CHECKING:
    from flowrl.recipe.schema import Recipe


class VaeKeys(Strict):
    """A pipeline's autoencoders. slicing, tiling: diffusers' own; a sample at a time, or in overlapping tiles, which
    changes it a little. dtype: of their weights and of what they compute in (null: dtype.model). batch: samples that
    are decoded at once, whose pictures go to host memory before the next are (null: all of a call)."""

    slicing: bool = key(False, "true or false")
    tiling: bool = key(False, "true or false")
    dtype: Precision | None = key(None, "float32, bfloat16, float16 or null")
    batch: int | None = key(None, "a whole number >= 1 or null", ge=1)


def check_fitting(recipe: "Recipe") -> Iterator[RecipeError]:
    """What of these keys does not go together."""
    train = recipe.train
    if train.recompute_every > 1 and not train.gradient_checkpointing:
        problem = f"got {train.recompute_every}, but no activations are computed again"
        yield RecipeError("train.recompute_every", problem, "set train.gradient_checkpointing=true, or this to 1")
    if train.ema_in_host and train.ema is None:
        yield RecipeError("train.ema_in_host", "got true, but no average is kept", "set train.ema, or this to false")
    if not recipe.block_offload:
        return
    if recipe.lora is None:
        problem = "got true with full: true, but weights that learn stay on the device"
        yield RecipeError("block_offload", problem, "train a lora, or set block_offload=false")
    if not train.gradient_checkpointing or train.recompute_every > 1:
        problem = "got true, but a block whose activations are not computed again is needed in the backward pass"
        yield RecipeError("block_offload", problem, "set train.gradient_checkpointing=true and train.recompute_every=1")
