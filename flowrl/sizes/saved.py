"""What autograd keeps for the backward pass, counted as it is kept."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Saved:
    """Bytes of the distinct storages that autograd saved since `clear`, those of `apart` (parameters) left out.

    Works on meta tensors too, whose storages have a size and an identity but no memory.
    """

    def __init__(self, apart: Iterable[Tensor] = ()):
        self._apart = {storage_of(t) for t in apart}
        self.storages: dict[int, int] = {}  # identity -> bytes

    @property
    def bytes(self) -> int:
        """The sum so far."""
        return sum(self.storages.values())

    def clear(self) -> None:
        """Begins again, as where a graph was dropped."""
        self.storages.clear()

    def note(self, tensor: Tensor) -> None:
        """Counts one saved tensor."""
        where = storage_of(tensor)
        if where not in self._apart:
            self.storages[where] = tensor.untyped_storage().nbytes()


def storage_of(tensor: Tensor) -> int:
    """The identity of a tensor's storage. Addresses would not do: on meta all are 0."""
    return tensor.untyped_storage()._cdata


@contextmanager
def counted(apart: Iterable[Tensor] = ()) -> Iterator[Saved]:
    """Within, what autograd saves is counted. Storages must outlive the count: a freed one's identity is given out
    again, so `clear` where a graph is dropped."""
    saved = Saved(apart)

    def pack(tensor: Tensor) -> Tensor:
        saved.note(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
