"""What autograd keeps for the backward pass, counted as it is kept."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class SavedStorages:
    """The distinct storages that autograd saved and still holds, without those of `excluded` (parameters).

    Works on meta tensors too, whose storages have a size and an identity but no memory. Storages are referenced
    weakly: what a dropped branch of the graph released does not count, and its identity is not reused.
    """

    def __init__(self, excluded: Iterable[Tensor] = ()):
        self._excluded = {storage_of(t) for t in excluded}
        self.weights: set[int] = set()  # those of them that autograd saved
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}
        self._left_out: list[Tensor] = []

    def leave_out(self, tensor: Tensor) -> None:
        """From now on a tensor is not counted among the others, but by `left_out`."""
        if storage_of(tensor) not in self._excluded:
            self._excluded.add(storage_of(tensor))
            self._left_out.append(tensor)  # so that its identity is not reused

    @property
    def left_out(self) -> int:
        """Bytes of those that were left out, and that autograd saved."""
        return sum(t.untyped_storage().nbytes() for t in self._left_out if storage_of(t) in self.weights)

    @property
    def storages(self) -> dict[int, int]:
        """Identity -> bytes."""
        return {where: size for where, (held, size) in self._seen.items() if not held.expired()}

    @property
    def bytes(self) -> int:
        """Their sum."""
        return sum(self.storages.values())

    def note(self, tensor: Tensor) -> None:
        """Counts one saved tensor, of any shape."""
        where = storage_of(tensor)
        if where in self._excluded:
            self.weights.add(where)
        elif where not in self._seen:
            storage = tensor.untyped_storage()
            self._seen[where] = StorageWeakRef(storage), storage.nbytes()


def storage_of(tensor: Tensor) -> int:
    """The identity of the storage of a tensor of any shape. Addresses would not do: on meta all are 0."""
    return tensor.untyped_storage()._cdata


@contextmanager
def count_saved(excluded: Iterable[Tensor] = ()) -> Iterator[SavedStorages]:
    """Counts what autograd saves within the context, but for the storages of `excluded`, tensors of any shape."""
    saved = SavedStorages(excluded)

    def pack(tensor: Tensor) -> Tensor:
        saved.note(tensor)
        return tensor.detach()  # an output that its own node held would be a cycle, and outlive the graph

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
