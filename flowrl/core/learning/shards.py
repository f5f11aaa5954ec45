"""Tensors of which every rank holds a part: torch's DTensor, told by what it can do (flowrl/engines makes them)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


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


def mixed(values: Sequence[object]) -> bool:
    """Whether some of them are shards and others plain tensors, which torch takes for no operation at once."""
    return len({is_shard(value) for value in values}) > 1


def clip_gradients(parameters: Sequence[nn.Parameter], most: float) -> Tensor:
    """Scales the gradients so that their norm is at most `most`; returns what it was, a scalar: clip_grad_norm_."""
    if not mixed(parameters):
        return whole(nn.utils.clip_grad_norm_(parameters, most))
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [[g for g in gradients if is_shard(g) == shards] for shards in (True, False)]
    norm = torch.stack([whole(nn.utils.get_total_norm(part)) for part in parts if part]).norm()
    for gradient in gradients:
        local(gradient).mul_((most / (norm + 1e-6)).clamp(max=1.0))
    return norm
