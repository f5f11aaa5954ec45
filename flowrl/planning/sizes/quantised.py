"""How many bytes a denoiser or a language model has of frozen weights in fewer bits.

int8 and fp8 (torchao, of weights alone): a byte a weight and a scale a row; nf4 (bitsandbytes): half a byte, and for
each 64 of them a float32; a GGUF file: what is in it. It is the linear layers that are quantised, see
`policies.quantising`. A backward pass holds a copy in full of each that was computed with, but for nf4's, which
bitsandbytes makes again.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from flowrl.recipe.schema import Train


@dataclass(frozen=True)
class QuantisedBytes:
    """spared: bytes that the weights take less than plain ones. copies: of the weights in full that a backward pass
    holds. block: of those of the largest block, where blocks are computed again."""

    spared: int = 0
    copies: int = 0
    block: int = 0


def all_of(parts: Iterable[QuantisedBytes]) -> QuantisedBytes:
    """Of several modules that are trained in turns: one of them is computed with at a time."""
    listed = list(parts)
    copies, block = (max((getattr(one, name) for one in listed), default=0) for name in ("copies", "block"))
    return QuantisedBytes(sum(one.spared for one in listed), copies, block)


def copies_in_training(found: QuantisedBytes, train: Train) -> int:
    """Bytes of the copies that one backward pass holds, by which blocks are computed again."""
    if not train.gradient_checkpointing:
        return found.copies
    kept = (train.recompute_every - 1) / train.recompute_every
    return found.block + round((found.copies - found.block) * kept)
