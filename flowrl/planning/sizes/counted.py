"""Floating-point operations of what is computed, counted product by product on the meta device."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from flowrl.planning.sizes.activations import FusedAttention


class Counted(TorchDispatchMode):
    """Within, the operations of products and convolutions are counted, a multiply and an add as two, by torch's own
    formulas. Attention is counted by the `FusedAttention` that it is to be used with, see `flops`."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.attention = 0, FusedAttention()

    @property
    def flops(self) -> int:
        """Those of all that was computed so far."""
        return self.products + self.attention.flops

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: Mapping | None = None
    ) -> Any:
        """The operation's own result."""
        given = dict(kwargs or {})
        result = func(*args, **given)
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula is not None:
            self.products += formula(*args, **given, out_val=result)
        return result


def count_flops(compute: Callable[[], Any], *, backward: bool = False) -> int:
    """Operations of what `compute` does without gradient; or with it, the backward pass of its results included."""
    with Counted() as counted, counted.attention, torch.set_grad_enabled(backward):
        results = [leaf for leaf in tree_leaves(compute()) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if backward and results:
            backward_pass(results)
    return counted.flops


def backward_pass(results: Sequence[Tensor]) -> None:
    """The backward pass by its engine: torch.autograd.backward would leave the attention's mode, under which blocks
    that compute again have to do so as they did."""
    gradients = tuple(torch.empty_like(leaf) for leaf in results)
    engine: Any = torch.autograd.Variable._execution_engine
    engine.run_backward(tuple(results), gradients, False, False, (), allow_unreachable=True, accumulate_grad=True)
