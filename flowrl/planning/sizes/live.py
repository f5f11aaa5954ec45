"""The most bytes that a computation holds at once, counted on the meta device as tensors come and go."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flowrl.planning.sizes.activations import FusedAttention
from flowrl.planning.sizes.saved import storage_of


class Live(TorchDispatchMode):
    """Within, storages that operations make are watched; `now`: bytes of those that live, `peak`: the most of them."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """known: tensors that are there already and stay, such as weights; they count as nothing."""
        super().__init__()
        self.now = self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]  # so that their identities are not reused
        self._ignored = {storage._cdata for storage in self._known}
        self._held: dict[int, tuple[weakref.ref, int]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: Mapping | None = None
    ) -> Any:
        """The operation's own result."""
        result = func(*args, **(kwargs or {}))
        given = {storage_of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and storage_of(leaf) not in given:
                self.note(leaf)
        return result

    def note(self, tensor: Tensor) -> None:
        """Counts a tensor's storage from now on, as long as it lives."""
        where, storage = storage_of(tensor), tensor.untyped_storage()
        if where in self._held or where in self._ignored:
            return
        size = storage.nbytes()
        self._held[where] = weakref.ref(storage, lambda _, at=where: self._gone(at)), size
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, where: int) -> None:
        self.now -= self._held.pop(where)[1]


def peak_live(compute: Callable[[], object]) -> int:
    """Bytes of the tensors that `compute` makes, at the moment when most of them live; without gradient.

    What a device's kernels take for themselves is not in it.
    """
    with torch.no_grad(), FusedAttention(), Live() as live:
        compute()
    return live.peak
