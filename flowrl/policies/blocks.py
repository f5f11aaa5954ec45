"""A denoiser of which one block is on the device at a time.

The blocks' frozen weights rest in host memory (see hosting.py); a block comes as it is called, and takes the place of
the one before. In a backward pass a block comes when its activations are computed again, by which time the block behind
it is done: so that every block has to be recomputed. diffusers' own group offloading takes a block away as soon as it
was called, in a backward pass before its gradient is.
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from flowrl.policies.errors import PolicyError
from flowrl.policies.hosting import Hosted, hosted


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer, in the order of their lists: those of classes that diffusers says are repeated."""
    named = set(getattr(module, "_repeated_blocks", None) or [])
    lists = [part for part in module.children() if isinstance(part, nn.ModuleList)]
    return [block for part in lists for block in part if type(block).__name__ in named]


def offload_blocks(modules: Mapping[str, nn.Module], device: torch.device) -> None:
    """Keeps the blocks of each module in host memory from now on. Raises PolicyError where it has no such blocks."""
    for name, module in modules.items():
        parts = repeated_blocks(module)
        if not parts:
            raise PolicyError(
                f"block_offload: {name} ({type(module).__name__}) is no chain of equal blocks; set block_offload=false"
            )
        blocks = [Hosted(part, device) for part in parts]
        hosted(module, device).leave_out(blocks)
        ring = _Ring()
        for part, block in zip(parts, blocks, strict=True):
            block.park()
            part.register_forward_pre_hook(ring.hook(block))


class _Ring:
    """Which block of a module is on the device."""

    def __init__(self) -> None:
        self.now: Hosted | None = None

    def hook(self, block: Hosted) -> Callable[..., None]:
        """What makes room for a block before it is called, and brings it."""

        def enter(*_: object) -> None:
            if self.now is not None and self.now is not block:
                self.now.park()
            block.fetch()
            self.now = block

        return enter
