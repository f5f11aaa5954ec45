"""The bytes of a module whose frozen weights are in fewer bits, counted on its layers; see quantised.py."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowrl.planning.sizes.quantised import QuantisedBytes
from flowrl.planning.sizes.saved import storage_of
from flowrl.policies.quantising import is_within
from flowrl.policies.random.weights import kept_in_float32
from flowrl.policies.recomputing import listed_blocks
from flowrl.recipe.keys.fitting import QuantizeKeys

SCALE = {"int8": None, "fp8": 4}  # bytes of a row's scale; None: those of the weights' own dtype
PER_BLOCK = 64  # weights that share a scale of nf4


def quantised_bytes(
    module: nn.Module, keys: QuantizeKeys, saved: Collection[int], *, head: str | None = None
) -> QuantisedBytes:
    """What quantising a module's linear layers changes. saved: the storages of weights that a backward pass needs.
    head: a layer that is left as it is."""
    spared = [
        "lora_A",
        "lora_B",
        *keys.skip,
        *([] if head is None else [head]),
        *kept_in_float32(module, torch.bfloat16),
    ]
    layers = [m for n, m in module.named_modules() if isinstance(m, nn.Linear) and not is_within(n, spared)]
    whole = sum(p.numel() * p.element_size() for n, p in module.named_parameters() if "lora_" not in n)
    plain = sum(map(_plain, layers))
    if keys.weights == "gguf":
        held = whole - Path(str(keys.file)).expanduser().stat().st_size
    else:
        held = plain - sum(_few(one, keys.weights) for one in layers)
    if keys.weights == "nf4":
        return QuantisedBytes(held)
    copied = {one for one in layers if storage_of(one.weight) in saved}
    blocks = [sum(_plain(one) for one in block.modules() if one in copied) for block in listed_blocks(module)]
    return QuantisedBytes(held, sum(map(_plain, copied)), max(blocks, default=0))


def _plain(layer: Any) -> int:
    return layer.weight.numel() * layer.weight.element_size()


def _few(layer: nn.Linear, weights: str) -> int:
    number, rows = layer.weight.numel(), layer.weight.shape[0]
    if weights == "nf4":
        return number // 2 + 4 * -(-number // PER_BLOCK)
    return number + rows * (SCALE[weights] or layer.weight.element_size())
