"""Adapters that compute in the precision of what they are given, while their weights stay float32.

peft casts each input to the weights' float32, which autograd then keeps beside the model's own, and multiplies there.
Here it is the factors that are rounded, at each product: gradients arrive in float32, and nothing else of the model is
computed otherwise, as it would be under torch's autocast.
"""

from typing import Any

import torch
from torch import Tensor, nn

from flowrl.policies.adapters import adapted_layers
from flowrl.untyped import Network


class Factor(nn.Linear):
    """One factor of an adapter, rounded to the precision of its input."""

    def forward(self, input: Tensor) -> Tensor:
        """input [..., in_features] in any precision; [..., out_features] in the same."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return nn.functional.linear(input, self.weight.to(input.dtype), bias)


def compute_as_inputs(modules: dict[str, Any]) -> None:
    """Lets the adapters of linear layers compute so, those that are there now."""
    for module in modules.values():
        for layer in _layers(module):
            _round(layer)


def follow(module: Network) -> None:
    """Lets adapters that were added to a module compute as the others of their layers do."""
    for layer in _layers(module):
        if not layer.cast_input_dtype_enabled:
            _round(layer)


def allow_tf32(allowed: bool) -> None:
    """Whether float32 products on a GPU round their factors to TF32's 10 bits; they do not, unless they are let."""
    torch.backends.cuda.matmul.allow_tf32 = allowed


def _layers(module: Network) -> list[Any]:
    return [layer for layer in adapted_layers(module) if hasattr(layer, "lora_A")]


def _round(layer: Any) -> None:
    factors = [factor for pair in (layer.lora_A, layer.lora_B) for factor in pair.values()]
    if factors and all(isinstance(factor, nn.Linear) for factor in factors):
        layer.cast_input_dtype_enabled = False
        for factor in factors:
            factor.__class__ = Factor
