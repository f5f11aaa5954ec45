"""What autograd keeps for the backward pass, counted as it is kept."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class Saved:
    """The distinct storages that autograd saved and still holds, those of `apart` (parameters) left out.

    Works on meta tensors too, whose storages have a size and an identity but no memory. Storages are referred to
    weakly: what a dropped branch of the graph let go of does not count, and its identity is not given out again.
    """

    def __init__(self, apart: Iterable[Tensor] = ()):
        self._apart = {storage_of(t) for t in apart}
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def storages(self) -> dict[int, int]:
        """Identity -> bytes."""
        return {where: size for where, (held, size) in self._seen.items() if not held.expired()}

    @property
    def bytes(self) -> int:
        """The sum of them."""
        return sum(self.storages.values())

    def note(self, tensor: Tensor) -> None:
        """Counts one saved tensor."""
        where = storage_of(tensor)
        if where not in self._apart and where not in self._seen:
            storage = tensor.untyped_storage()
            self._seen[where] = StorageWeakRef(storage), storage.nbytes()


def storage_of(tensor: Tensor) -> int:
    """The identity of a tensor's storage. Addresses would not do: on meta all are 0."""
    return tensor.untyped_storage()._cdata


@contextmanager
def counted(apart: Iterable[Tensor] = ()) -> Iterator[Saved]:
    """Within, what autograd saves is counted."""
    saved = Saved(apart)

    def pack(tensor: Tensor) -> Tensor:
        saved.note(tensor)
        return tensor.detach()  # an output that its own node held would be a cycle, and outlive the graph

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
