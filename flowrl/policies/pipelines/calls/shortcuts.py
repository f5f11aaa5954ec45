"""What diffusers asks modules in every call of a pipeline, answered without its walks through all modules within them.

Where inputs have to be, and whether hooks (a cache of blocks, offloading of groups) hold a state that ends with the
call, depends on hooks that hardly any module has. `submodules` finds that out in a tenth of the time.
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from flowrl.policies.submodules import submodules

ASKED = ("modules", "device", "_reset_stateful_cache")


def shortcut(module: nn.Module, name: str) -> Any:
    """The attribute of a module, one of ASKED; it gives what the module's own would.

    Raises AttributeError where the module has none.
    """
    own = getattr(type(module), name, None)
    if name == "modules" and own is nn.Module.modules:
        return partial(_iterated, module)
    if name == "device" and own is ModelMixin.device:
        return _device(module)
    if name == "_reset_stateful_cache" and own is CacheMixin._reset_stateful_cache:
        return partial(_reset, module)
    return getattr(module, name)


def has_hooks(module: nn.Module) -> bool:
    """Whether diffusers' hooks are on a module or on any within it."""
    dicts = [part.__dict__ for part in submodules(module)]  # `hasattr` of what a module lacks asks three times
    return any(own["_diffusers_hook"].hooks for own in dicts if "_diffusers_hook" in own)


def _iterated(module: nn.Module) -> Iterator[nn.Module]:
    return iter(submodules(module))


def _device(module: Any) -> torch.device:
    """Where the first parameter lies, or, of a module without any, the first buffer."""
    first: Tensor | None = next(chain(module.parameters(), module.buffers()), None)
    return module.device if first is None or has_hooks(module) else first.device


def _reset(module: Any, recurse: bool = True) -> None:
    if has_hooks(module):
        module._reset_stateful_cache(recurse)
