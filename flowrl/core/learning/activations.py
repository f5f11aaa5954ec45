"""What a training forward keeps for its backward pass rests in host memory in between."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from flowrl.core.learning.shards import is_shard, local

LEAST = 2**16  # bytes: what is smaller stays, as a journey would take longer than it frees


@contextmanager
def activations_in_host(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within, tensors that autograd saves go to host memory, and come back when they are needed, bit for bit.

    Weights and buffers of the modules, and views of them, are saved as they are: they are there anyway, or, where ranks
    share them out, are gathered again for the backward.
    """
    modules = list(modules)
    weights = {_place(local(t)) for m in modules for t in (*m.parameters(), *m.buffers())}
    hooks = [part.register_forward_pre_hook(_noting(weights)) for part in _sharing(modules)]

    def pack(tensor: Tensor) -> tuple[torch.device, Tensor]:
        small = tensor.numel() * tensor.element_size() < LEAST
        if small or _place(tensor) in weights:
            return tensor.device, tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, layout=tensor.layout, pin_memory=tensor.is_cuda)
        return tensor.device, host.copy_(tensor)

    def unpack(packed: tuple[torch.device, Tensor]) -> Tensor:
        device, tensor = packed
        return tensor.to(device, non_blocking=tensor.is_pinned())

    try:
        with saved_tensors_hooks(pack, unpack):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _place(tensor: Tensor) -> int:
    """What a tensor's memory is known by, also while it is given back in between."""
    return tensor.untyped_storage()._cdata


def _sharing(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The layers of models of which this rank holds a part, each with weights of its own: as they are called, these
    have been gathered."""
    shared = [module for module in modules if any(map(is_shard, module.parameters()))]
    return [part for module in shared for part in module.modules() if part._parameters]


def _noting(weights: set[int]) -> Callable[[nn.Module, object], None]:
    def note(layer: nn.Module, _: object) -> None:
        weights.update(_place(local(p)) for p in layer.parameters(recurse=False))

    return note
