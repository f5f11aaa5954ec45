"""What a training forward keeps for its backward pass, measured by running it on the meta device and counting."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from flowrl.planning.sizes.saved import SavedStorages, count_saved, storage_of
from flowrl.policies.recomputing import listed_blocks


@dataclass(frozen=True)
class ActivationBytes:
    """Bytes that autograd keeps over a forward, all but the first of them in proportion to rows.

    fixed: weights that are rounded as they are used, such as those of adapters in the model's precision. whole: all
    others. recomputing: with gradient checkpointing, what lies outside blocks, and, at the moment of the backward pass
    that holds most, the inputs of blocks that are yet to be computed again and what the one that just was keeps.
    block: what the largest keeps. moments: of which `recomputing` is the largest, as the first and the last block of
    each call are computed again, and as the forward ends; each grows by as much with every further block like others.
    """

    fixed: int
    whole: int
    recomputing: int
    block: int
    moments: tuple[int, ...]


class FusedAttention(TorchFunctionMode):
    """Within, attention keeps what a fused kernel keeps: q, k, v, the output and one log-sum per query.

    The meta device would choose the unfused kernel, which keeps the matrix of scores that no real device computes.
    flops: of the products of attention within, in its backward pass without those that a fused kernel does again.
    masks: a mask is kept too, as torch turns it into numbers of the queries' precision, for each layer anew.
    """

    def __init__(self, *, masks: bool = False) -> None:
        super().__init__()
        self.flops, self.masks = 0, masks

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """The function's own result, except for attention."""
        given = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            named = [given[name] for name in ("query", "key", "value") if name in given]
            mask = given.get("attn_mask", args[3] if len(args) > 3 else None) if self.masks else None
            return _Attention.apply(self, *[*args, *named][:3], mask)
        return func(*args, **given)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, counts: FusedAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None
    ) -> Tensor:
        out = q.new_empty((*q.shape[:-1], v.shape[-1]))
        bias = q.new_empty(mask.shape) if mask is not None and mask.dtype == torch.bool else mask
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32), bias)
        ctx.counts, ctx.flops = counts, 2 * q.shape[:-1].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        counts.flops += ctx.flops
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, Tensor, None]:
        """Gradients of the right shapes: two products for each of the forward."""
        q, k, v, *_ = ctx.saved_tensors
        ctx.counts.flops += 2 * ctx.flops
        return None, torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None


class _Casts(TorchFunctionMode):
    """Within, parameters that are brought to another precision are not counted as activations."""

    def __init__(self, saved: SavedStorages) -> None:
        super().__init__()
        self.saved = saved

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """The function's own result."""
        result = func(*args, **(kwargs or {}))
        if func in (Tensor.to, Tensor.float) and isinstance(args[0], nn.Parameter):
            self.saved.leave_out(result)
        return result


def measure_activations(
    module: nn.Module, calls: Sequence[tuple[tuple, dict[str, Any]]], every: int = 1
) -> ActivationBytes:
    """What calls with these arguments keep for one backward pass. Nothing is computed: everything is on meta.

    every: of the blocks, each so many-th computes again, see `policies.recomputing`.
    """
    excluded = [*module.parameters(), *module.buffers()]
    with count_saved(excluded) as saved, _blocks(module, saved) as blocks:
        with _Casts(saved), FusedAttention(), torch.enable_grad():
            outputs = [module(*args, **kwargs) for args, kwargs in calls]
    storages, fixed = saved.storages, saved.left_out
    del outputs
    again = {id(block) for i, block in enumerate(listed_blocks(module)) if i % every == 0}
    inside = {where for block in blocks for where in block.own}
    outside = {where: size for where, size in storages.items() if where not in inside}
    alive = {where: size for where, size in outside.items() if blocks and where in blocks[-1].before}
    moments = []  # as a block is computed again, by when what is behind it is done with
    for block in blocks:
        alive = alive | (block.inputs if id(block.module) in again else block.own)
        moments.append(sum((alive | block.own).values()))
    moments.append(sum((outside | alive).values()))  # as the forward ends
    whole, largest = sum(storages.values()), max((sum(block.own.values()) for block in blocks), default=0)
    most = max(moments) if blocks else whole
    told = _first_and_last(blocks, moments, len(calls)) or (most,)
    return ActivationBytes(fixed, whole, most, largest or whole, told)


def _first_and_last(blocks: Sequence["_Block"], moments: Sequence[int], calls: int) -> tuple[int, ...]:
    """Of the moments those of the first and the last block of each call, and the last of all; nothing where blocks
    differ, so that another one may be the largest."""
    size, left = divmod(len(blocks), calls)
    shapes = {tuple((n, p.shape) for n, p in block.module.named_parameters()) for block in blocks}
    if left or len(shapes) != 1:
        return ()
    return tuple(moments[at + end] for at in range(0, len(blocks), size) for end in (0, size - 1)) + (moments[-1],)


def saved_weights(module: nn.Module, calls: Sequence[tuple[tuple, dict[str, Any]]]) -> set[int]:
    """The storages of those of a module's weights that a backward pass through such calls needs."""
    with count_saved([*module.parameters(), *module.buffers()]) as saved, FusedAttention(), torch.enable_grad():
        for args, kwargs in calls:
            module(*args, **kwargs)
    return saved.weights


@dataclass
class _Block:
    """A call of a block. inputs, own: storages with their bytes, those passed to it and those it was the first to save;
    before: what had been saved; held: so that no identity is reused."""

    module: nn.Module
    before: set[int]
    inputs: dict[int, int] = field(default_factory=dict)
    own: dict[int, int] = field(default_factory=dict)
    held: list[Tensor] = field(default_factory=list)


@contextmanager
def _blocks(module: nn.Module, saved: SavedStorages) -> Iterator[list[_Block]]:
    """Within, the blocks of a transformer (the items of its lists of modules) are watched, call by call."""
    watched: list[_Block] = []
    excluded = {storage_of(p) for p in module.parameters()}

    def enter(block: nn.Module, args: tuple, kwargs: dict) -> None:
        call = _Block(block, set(saved.storages))
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and storage_of(leaf) not in excluded:
                call.inputs[storage_of(leaf)] = leaf.untyped_storage().nbytes()
                call.held.append(leaf)
        watched.append(call)

    def leave(block: nn.Module, *_: object) -> None:
        call = watched[-1]
        call.own = {where: size for where, size in saved.storages.items() if where not in call.before}

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
