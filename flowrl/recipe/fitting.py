"""Keys about what takes memory and time: where weights rest, and how parts that are large for a moment work."""

from flowrl.recipe.base import Strict, key
from flowrl.recipe.tracking import Precision


class VaeKeys(Strict):
    """A pipeline's autoencoders. slicing, tiling: diffusers' own; a sample at a time, or in overlapping tiles, which
    changes it a little. dtype: of their weights and of what they compute in (null: dtype.model). batch: samples that
    are decoded at once, whose pictures go to host memory before the next are (null: all of a call)."""

    slicing: bool = key(False, "true or false")
    tiling: bool = key(False, "true or false")
    dtype: Precision | None = key(None, "float32, bfloat16, float16 or null")
    batch: int | None = key(None, "a whole number >= 1 or null", ge=1)
