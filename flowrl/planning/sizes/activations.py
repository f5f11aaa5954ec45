"""What a training forward keeps for its backward pass, found by running it on the meta device and counting."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from flowrl.planning.sizes.saved import Saved, counted, storage_of


@dataclass(frozen=True)
class Kept:
    """Bytes that autograd keeps over a forward. whole: all. recomputing: with gradient checkpointing, the inputs of all
    blocks, what lies outside them, and what the largest block keeps while it is computed again. block: the largest."""

    whole: int
    recomputing: int
    block: int


class Fused(TorchFunctionMode):
    """Within, attention keeps what a fused kernel keeps: q, k, v, the output and a log-sum a query.

    The meta device would take the unfused one, which keeps the matrix of scores that no device works out.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function's own result, but for attention."""
        given = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            named = [given[name] for name in ("query", "key", "value") if name in given]
            return _Attention.apply(*[*args, *named][:3])
        return func(*args, **given)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty((*q.shape[:-1], v.shape[-1]))
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out


def kept(module: nn.Module, calls: Sequence[dict[str, Any]]) -> Kept:
    """What calls with these arguments keep for one backward pass. Nothing is computed: all of it is on meta."""
    apart = [*module.parameters(), *module.buffers()]
    with counted(apart) as saved, _blocks(module, saved) as blocks, Fused(), torch.enable_grad():
        outputs = [module(**arguments, return_dict=False) for arguments in calls]
    storages = saved.storages
    del outputs
    inside = {where for block in blocks.own for where in block}
    outside = {where: size for where, size in storages.items() if where not in inside}
    between = outside | blocks.inputs
    whole = sum(storages.values())
    recomputing = max((sum((between | block).values()) for block in blocks.own), default=whole)
    return Kept(whole, recomputing, max((sum(block.values()) for block in blocks.own), default=whole))


class _Blocks:
    """Storages with their bytes: those that each block was the first to save, and those handed to any block."""

    def __init__(self) -> None:
        self.own: list[dict[int, int]] = []
        self.inputs: dict[int, int] = {}
        self.held: list[Tensor] = []  # so that no identity is given out twice
        self.before: set[int] = set()


@contextmanager
def _blocks(module: nn.Module, saved: Saved) -> Iterator[_Blocks]:
    """Within, the blocks of a transformer (the items of its lists of modules) are watched."""
    found = _Blocks()
    apart = {storage_of(p) for p in module.parameters()}

    def enter(block: nn.Module, args: tuple, kwargs: dict) -> None:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and storage_of(leaf) not in apart:
                found.inputs[storage_of(leaf)] = leaf.untyped_storage().nbytes()
                found.held.append(leaf)
        found.before = set(saved.storages)

    def leave(block: nn.Module, *_: Any) -> None:
        found.own.append({where: size for where, size in saved.storages.items() if where not in found.before})

    hooks = []
    for part in module.children():
        for block in part if isinstance(part, nn.ModuleList) else ():
            hooks.append(block.register_forward_pre_hook(enter, with_kwargs=True))
            hooks.append(block.register_forward_hook(leave))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
