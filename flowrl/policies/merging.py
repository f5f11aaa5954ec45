"""Adapters merged into the weights while samples are drawn: one product a layer in place of three.

What is drawn then differs by rounding from what trains (see recipe/checks/merging.py). The frozen weights themselves
are never touched: layers hold merged ones beside them, and get the same tensors back, so that nothing drifts.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import nn

from flowrl.policies.adapters import Modules, tuner_layers
from flowrl.policies.submodules import submodules


class MayMerge(Protocol):
    """A policy that says whether it draws by merged weights."""

    modules: Any
    merge: bool


def drawing(policy: MayMerge) -> AbstractContextManager[None]:
    """Within, a policy draws: by merged weights, if it is to."""
    return merged(policy.modules) if policy.merge else nullcontext()


@contextlib.contextmanager
def merged(modules: Modules) -> Iterator[None]:
    """Within, the linear layers of the modules hold W + D of their active adapters, in W's dtype, rounded once.

    A layer whose weight another one shares (a head that is tied to embeddings) keeps its adapters beside it, as do
    layers of other kinds. Where adapters are off, or merged, nothing happens. It takes the memory of the weights that
    adapters touch, which `touched_bytes` counts.
    """
    held: list[tuple[Any, Any, nn.Parameter]] = []
    try:
        with torch.no_grad():
            for layer in mergeable(modules):
                base = layer.get_base_layer()
                held.append((layer, base, base.weight))
                _merge(layer, base)
        yield
    finally:
        for layer, base, weight in held:
            layer.merged_adapters.clear()
            base._parameters["weight"] = weight


def _merge(layer: Any, base: nn.Linear) -> None:
    """Puts a weight with the layer's active adapters in the place of its own.

    Where that is the weight and one difference, it is added into the difference: the sum that peft's `merge` rounds,
    without a copy of the weight before it.
    """
    names = [name for name in layer.active_adapters if name in getattr(layer, "lora_A", ())]
    if len(names) == 1 and not (names[0] in layer.lora_variant or layer.lora_bias[names[0]]):
        merged = layer.get_delta_weight(names[0]).add_(base.weight).to(base.weight.dtype)
        base._parameters["weight"] = nn.Parameter(merged, requires_grad=False)
        layer.merged_adapters.append(names[0])
        return
    base._parameters["weight"] = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
    layer.merge()


def mergeable(modules: Modules) -> list[Any]:
    """The adapted layers whose weights can hold their adapters."""
    parts = submodules(*modules.values())
    owners = Counter(id(weight) for part in parts for weight in part._parameters.values())
    return [
        layer
        for layer in tuner_layers(parts)
        if isinstance(base := layer.get_base_layer(), nn.Linear)
        and owners[id(base.weight)] == 1
        and not (layer.disable_adapters or layer.merged)
    ]


def touched_bytes(modules: Modules) -> int:
    """Bytes of the weights that `merged` makes beside the frozen ones."""
    return sum(layer.get_base_layer().weight.nbytes for layer in mergeable(modules))
