"""What a training forward keeps for its backward pass rests in host memory in between."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

LEAST = 2**16  # bytes: what is smaller stays, as a journey would take longer than it frees


@contextmanager
def activations_in_host(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within, tensors that autograd saves go to host memory, and come back when they are needed, bit for bit.

    Weights and buffers of the modules, and views of them, are saved as they are: they are there anyway.
    """
    weights = {t.untyped_storage().data_ptr() for m in modules for t in (*m.parameters(), *m.buffers())}

    def pack(tensor: Tensor) -> tuple[torch.device, Tensor]:
        small = tensor.numel() * tensor.element_size() < LEAST
        if small or tensor.untyped_storage().data_ptr() in weights:
            return tensor.device, tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, layout=tensor.layout, pin_memory=tensor.is_cuda)
        return tensor.device, host.copy_(tensor)

    def unpack(packed: tuple[torch.device, Tensor]) -> Tensor:
        device, tensor = packed
        return tensor.to(device, non_blocking=tensor.is_pinned())

    with saved_tensors_hooks(pack, unpack):
        yield
