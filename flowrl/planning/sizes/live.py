"""The most bytes that a computation holds at once, counted on the meta device as tensors come and go."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flowrl.planning.sizes.activations import FusedAttention
from flowrl.planning.sizes.saved import storage_of


class _Live(TorchDispatchMode):
    """Within, storages that operations make are watched; `peak` is the most bytes of them that lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: Mapping | None = None
    ) -> Any:
        """The operation's own result."""
        result = func(*args, **(kwargs or {}))
        self._held = {where: one for where, one in self._held.items() if not one[0].expired()}
        given = {storage_of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and storage_of(leaf) not in given and storage_of(leaf) not in self._held:
                storage = leaf.untyped_storage()
                self._held[storage_of(leaf)] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._held.values()))
        return result


def peak_live(compute: Callable[[], object]) -> int:
    """Bytes of the tensors that `compute` makes, at the moment when most of them live; without gradient.

    What a device's kernels take for themselves is not in it.
    """
    with torch.no_grad(), FusedAttention(), _Live() as live:
        compute()
    return live.peak
