"""What a training forward keeps for its backward pass, measured by running it on the meta device and counting."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from flowrl.planning.sizes.saved import SavedStorages, count_saved, storage_of


@dataclass(frozen=True)
class ActivationBytes:
    """Bytes that autograd keeps over a forward. whole: all. recomputing: with gradient checkpointing, the inputs of all
    blocks, what lies outside them, and what the largest block keeps while recomputed. block: what the largest keeps."""

    whole: int
    recomputing: int
    block: int


class FusedAttention(TorchFunctionMode):
    """Within, attention keeps what a fused kernel keeps: q, k, v, the output and one log-sum per query.

    The meta device would choose the unfused kernel, which keeps the matrix of scores that no real device computes.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """The function's own result, except for attention."""
        given = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            named = [given[name] for name in ("query", "key", "value") if name in given]
            return _Attention.apply(*[*args, *named][:3])
        return func(*args, **given)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty((*q.shape[:-1], v.shape[-1]))
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out


def measure_activations(module: nn.Module, calls: Sequence[tuple[tuple, dict[str, Any]]]) -> ActivationBytes:
    """What calls with these arguments keep for one backward pass. Nothing is computed: everything is on meta."""
    excluded = [*module.parameters(), *module.buffers()]
    with count_saved(excluded) as saved, _blocks(module, saved) as blocks, FusedAttention(), torch.enable_grad():
        outputs = [module(*args, **kwargs) for args, kwargs in calls]
    storages = saved.storages
    del outputs
    inside = {where for block in blocks.own for where in block}
    outside = {where: size for where, size in storages.items() if where not in inside}
    between = outside | blocks.inputs
    whole = sum(storages.values())
    recomputing = max((sum((between | block).values()) for block in blocks.own), default=whole)
    return ActivationBytes(whole, recomputing, max((sum(block.values()) for block in blocks.own), default=whole))


def saved_weights(module: nn.Module, calls: Sequence[tuple[tuple, dict[str, Any]]]) -> set[int]:
    """The storages of those of a module's weights that a backward pass through such calls needs."""
    with count_saved([*module.parameters(), *module.buffers()]) as saved, FusedAttention(), torch.enable_grad():
        for args, kwargs in calls:
            module(*args, **kwargs)
    return saved.weights


class _Blocks:
    """Storages with their bytes: those that each block was the first to save, and those passed to any block."""

    def __init__(self) -> None:
        self.own: list[dict[int, int]] = []
        self.inputs: dict[int, int] = {}
        self.held: list[Tensor] = []  # so that no identity is reused
        self.before: set[int] = set()


@contextmanager
def _blocks(module: nn.Module, saved: SavedStorages) -> Iterator[_Blocks]:
    """Within, the blocks of a transformer (the items of its lists of modules) are watched."""
    watched = _Blocks()
    excluded = {storage_of(p) for p in module.parameters()}

    def enter(block: nn.Module, args: tuple, kwargs: dict) -> None:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and storage_of(leaf) not in excluded:
                watched.inputs[storage_of(leaf)] = leaf.untyped_storage().nbytes()
                watched.held.append(leaf)
        watched.before = set(saved.storages)

    def leave(block: nn.Module, *_: object) -> None:
        watched.own.append({where: size for where, size in saved.storages.items() if where not in watched.before})

    hooks = []
    for part in module.children():
        for block in part if isinstance(part, nn.ModuleList) else ():
            hooks.append(block.register_forward_pre_hook(enter, with_kwargs=True))
            hooks.append(block.register_forward_hook(leave))
    try:
        yield watched
    finally:
        for hook in hooks:
            hook.remove()
