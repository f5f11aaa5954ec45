"""Keys about what takes memory and time: where weights rest, and how parts that are large for a moment work."""

from typing import Literal

from flowrl.recipe.base import Strict, key
from flowrl.recipe.keys.tracking import Precision


class QuantizeKeys(Strict):
    """Frozen weights in fewer bits. weights: int8 and fp8 by torchao, nf4 by bitsandbytes on a GPU, gguf from `file`, a
    GGUF file of the denoiser. skip: modules whose weights stay as they are, by name or part of it."""

    weights: Literal["int8", "fp8", "nf4", "gguf"] = key(..., "int8, fp8, nf4 or gguf")
    skip: list[str] = key([], "a list of module names")
    file: str | None = key(None, "a GGUF file or null", min_length=1)


class CompileKeys(Strict):
    """Networks compiled by torch.compile. regional: their repeated blocks, otherwise each as a whole, which takes
    longer. mode: torch's own, of inductor; those that reuse memory between calls (CUDA graphs) are not among them.
    backend: inductor makes kernels; aot_eager and eager run the graphs as they are, to find what makes a difference.
    """

    mode: Literal["default", "max-autotune-no-cudagraphs"] = key("default", "default or max-autotune-no-cudagraphs")
    regional: bool = key(True, "true or false")
    backend: Literal["inductor", "aot_eager", "eager"] = key("inductor", "inductor, aot_eager or eager")


class VaeKeys(Strict):
    """A pipeline's autoencoders. slicing, tiling: diffusers' own; a sample at a time, or in overlapping tiles, which
    changes it a little. dtype: of their weights and of what they compute in (null: dtype.model). batch: samples that
    are decoded at once, whose pictures go to host memory before the next are (null: all of a call). channels_last: how
    weights of convolutions lie in memory."""

    slicing: bool = key(False, "true or false")
    tiling: bool = key(False, "true or false")
    dtype: Precision | None = key(None, "float32, bfloat16, float16 or null")
    batch: int | None = key(None, "a whole number >= 1 or null", ge=1)
    channels_last: bool = key(False, "true or false")
