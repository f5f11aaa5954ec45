"""The keys of a run over several processes."""

from typing import Literal

from flowrl.recipe.base import Strict, key


class ParallelKeys(Strict):
    """Several processes that train one model together, each on its own device (docs/scale.md).

    ranks: how many there have to be (null: as many as are started, by `--ranks N` or torchrun). Numbers of the recipe
    are those of all ranks together: train.prompts are shared out, and the run is the one that a single process does.
    wait: seconds that a rank waits for the slowest before the run ends, with everything saved.
    kind: replicate (every rank holds the weights) or fsdp (every rank holds an equal part of them, of their gradients,
    moments and copies: PyTorch's FSDP2, arXiv:2304.11277). The other keys are those of fsdp. blocks: the lists of a
    model's layers that are gathered one by one, by name (null: all of the denoiser, or of the text decoder). reshard:
    whether a block is sharded again after its forward. offload: whether shards lie on the CPU. mixed_precision: the
    type that weights are gathered and multiplied in; gradients are summed in float32 (float16 is dtype.model's, which
    scales the loss). sampling: whole (all weights are
    gathered before samples are drawn) or sharded (block by block, for models that no device can hold).
    """

    ranks: int | None = key(None, "a whole number >= 1 or null", ge=1)
    wait: float = key(600.0, "a number > 0, in seconds", gt=0)
    kind: Literal["replicate", "fsdp"] = key("replicate", "replicate or fsdp")
    blocks: list[str] | None = key(None, "a list of names of lists of layers, or null", min_length=1)
    reshard: bool = key(True, "true or false")
    offload: bool = key(False, "true or false")
    mixed_precision: Literal["bfloat16"] | None = key(None, "bfloat16 or null")
    sampling: Literal["whole", "sharded"] = key("whole", "whole or sharded")
