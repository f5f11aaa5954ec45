"""What is measured of a denoiser, from a few of its blocks where all are alike: each further one adds the same."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from flowrl.known.places import cut
from flowrl.planning.sizes.components import Component
from flowrl.untyped import JSON

FEW = 2  # blocks that are measured, the last one and one before it


def of_blocks(
    part: Component,
    dtype: torch.dtype,
    lora: Mapping[str, JSON] | None,
    measure: Callable[[nn.Module], Sequence[int]],
    every: int = 1,
) -> list[int]:
    """The numbers that a measure gives of a component with what it trains; every: so many-th blocks differ from others.

    Each is a sum over blocks beside what there is once, or the same for any number of them.
    """
    whole = part.build(dtype)
    number, few = _alike(whole, FEW + 2 * every), FEW
    if number is not None and not _names_blocks(lora):
        few += (number - FEW) % every
        least, more = (replace(part, config=cut(part.config, n)).build(dtype) for n in (few, few + every))
        if (_alike(least, 0), _alike(more, 0)) == (few, few + every):
            pairs = zip(measure(least), measure(more), strict=True)
            return [one + (other - one) * (number - few) // every for one, other in pairs]
    return list(measure(whole))


def _alike(module: nn.Module, least: int) -> int | None:
    """The number of blocks of a module that has one list of more than `least`, all with the same parameters, and
    others no longer than FEW; None of others."""
    lists = [part for part in module.children() if isinstance(part, nn.ModuleList) and len(part) > max(least, 1)]
    others = [part for part in module.children() if isinstance(part, nn.ModuleList) and part not in lists]
    if len(lists) != 1 or any(len(part) > FEW for part in others):
        return None
    shapes = {tuple((n, p.shape, p.dtype) for n, p in block.named_parameters()) for block in lists[0]}
    return len(lists[0]) if len(shapes) == 1 else None


def _names_blocks(lora: Mapping[str, JSON] | None) -> bool:
    """Whether what a LoRA is on may be some of the blocks: by a pattern, or a number that does not end a name."""
    targets = [] if lora is None else lora.get("targets") or []
    listed = [targets] if isinstance(targets, str) else list(targets)
    return any(one.startswith("match:") or any(part.isdigit() for part in one.split(".")[:-1]) for one in listed)
