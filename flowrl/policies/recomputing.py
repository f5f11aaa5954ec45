"""Activations that are computed again in the backward pass, of all blocks of a model or of some of them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from flowrl.policies.errors import PolicyError
from flowrl.untyped import Network

# diffusers' method, then transformers', the newest name first
_ENABLE = ("enable_gradient_checkpointing", "activation_checkpointing_enable", "gradient_checkpointing_enable")


def checkpoint_gradients(modules: Mapping[str, Network], every: int = 1) -> None:
    """Trades time for memory: activations are recomputed in the backward pass.

    every: of the blocks, each so many-th recomputes, beginning with the first; the others keep what they computed.
    Raises PolicyError if a module does not support it.
    """
    for name, module in modules.items():
        enable = next((getattr(module, n) for n in _ENABLE if hasattr(module, n)), None)
        flags = [getattr(module, f"{p}supports_gradient_checkpointing", True) for p in ("_", "")]
        if enable is None or not all(flags):
            raise PolicyError(
                f"train.gradient_checkpointing: {name} ({type(module).__name__}) cannot recompute activations; set it "
                "to false"
            )
        enable()
        if enable.__name__ != _ENABLE[0]:
            for layer in module.modules():  # transformers recomputes in training mode alone; children keep dropout off
                layer.training = bool(getattr(layer, "gradient_checkpointing", False))
        if every > 1:
            _only(module, every)


def _only(module: Network, every: int) -> None:
    """Lets the others compute as they would without. diffusers asks a model's function for each block; transformers'
    blocks ask their own."""
    spared = {id(block) for i, block in enumerate(listed_blocks(module)) if i % every}
    for part in module.modules():
        own = getattr(part, "_gradient_checkpointing_func", None)
        if id(part) in spared and hasattr(part, "gradient_checkpointing"):
            part.gradient_checkpointing = False
        elif own is not None:
            part._gradient_checkpointing_func = functools.partial(_unless_spared, own, spared)


def listed_blocks(module: nn.Module) -> list[nn.Module]:
    """The entries of all lists of modules that are not part of an entry themselves, in order."""
    found: list[nn.Module] = []
    within: tuple[str, ...] = ()
    for name, part in module.named_modules():
        if isinstance(part, nn.ModuleList) and not f"{name}.".startswith(within or ("\0",)):
            within = (*within, f"{name}.")
            found += list(part)
    return found


def _unless_spared(own: Callable[..., Any], spared: set[int], block: Any, *args: Any, **kwargs: Any) -> Any:
    if id(getattr(block, "__self__", block)) in spared:
        return block(*args, **{k: v for k, v in kwargs.items() if k != "use_reentrant"})
    return own(block, *args, **kwargs)
