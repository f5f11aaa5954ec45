"""Tensors of which every rank holds a part: torch's DTensor, told by what it can do (flowrl/engines makes them)."""

from typing import Any

from torch import Tensor


def is_shard(value: object) -> bool:
    """Whether the value is a tensor of which this rank holds a part."""
    return hasattr(value, "full_tensor")


def local(value: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, in its storage; all of a plain one. Without gradient."""
    shard: Any = value.detach()
    return shard.to_local() if is_shard(shard) else shard


def whole(value: Tensor) -> Tensor:
    """All of a tensor, for which every rank has to ask; a plain one is given back."""
    shard: Any = value
    return shard.full_tensor() if is_shard(shard) else value
