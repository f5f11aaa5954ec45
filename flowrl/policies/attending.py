"""Which kernels compute attention in a network: a backend of diffusers, an implementation of transformers.

Of this network alone. diffusers' `set_attention_backend` also makes its backend that of every other model in the
process whose processors name none; this is taken back, so that reward models and references attend as they did.
"""

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flowrl.policies.errors import PolicyError
from flowrl.recipe.keys.attention import LANGUAGE_MODELS, PIPELINES

Holder = tuple[Any, str]  # an object, and its attribute that says how it attends
PROCESSOR, CONFIG = "_attention_backend", "_attn_implementation_internal"
_AS_LOADED: WeakKeyDictionary[nn.Module, list[tuple[Any, str, Any]]] = WeakKeyDictionary()


def refuse_missing(backend: str, device: torch.device) -> None:
    """Raises PolicyError for a backend that needs a GPU, where there is none. Before weights are loaded."""
    if (PIPELINES | LANGUAGE_MODELS)[backend].gpu and device.type != "cuda":
        raise PolicyError(
            f"attention.backend: {backend} needs a CUDA GPU, and the device is {device}; set attention=null"
        )


def choose_attention(modules: Mapping[str, nn.Module], backend: str) -> None:
    """Lets networks attend by a backend, and nothing else in the process.

    Raises PolicyError where a network cannot, or has nothing that would heed it.
    """
    for name, module in modules.items():
        label, before = f"{name} ({type(module).__name__})", [(o, a, getattr(o, a)) for o, a in _holders(module)]
        try:
            _choose(module, backend)
        except (AttributeError, ImportError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise PolicyError(
                f"attention.backend: {backend} cannot be used by {label}: {reason}; set attention=null"
            ) from error
        others = sorted({str(getattr(o, a)) for o, a in _holders(module) if getattr(o, a) != backend})
        if others or not before:
            what = f"keeps {', '.join(others)}" if others else "calls torch's attention by itself, whatever is chosen"
            raise PolicyError(f"attention.backend: {backend} has no effect: {label} {what}; set attention=null")
        _AS_LOADED[module] = before


def refusal(error: Exception) -> str | None:
    """The line for what a backend of diffusers raises where it does not take a mask, a dtype or sizes, else None."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    if Path(place.filename) != Path(attention_dispatch.__file__) or isinstance(error, torch.OutOfMemoryError):
        return None
    reason = " ".join(str(error).split())[:200]
    return f"attention.backend: it does not take what this network gives it ({reason}); choose another, or null"


@contextmanager
def as_loaded(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within, networks attend as they did before `choose_attention`."""
    before = [one for module in modules for one in _AS_LOADED.get(module, [])]
    chosen = [(held, attribute, getattr(held, attribute)) for held, attribute, _ in before]
    try:
        for held, attribute, value in before:
            setattr(held, attribute, value)
        yield
    finally:
        for held, attribute, value in chosen:
            setattr(held, attribute, value)


@dataclass
class Calls:
    """How often attention was computed. chosen: by the backend. others: by torch's kernels without it."""

    chosen: int = 0
    others: int = 0


@contextmanager
def counted(modules: Iterable[nn.Module], backend: str) -> Iterator[Calls]:
    """Counts how networks attend while they run. Transformers' eager attention is no call that could be counted."""
    calls, inside, within = Calls(), [0], [0]

    def counting(own: Callable[..., Any]) -> Callable[..., Any]:
        def attend(*args: Any, **kwargs: Any) -> Any:
            calls.chosen += inside[0] > 0
            within[0] += 1
            try:
                return own(*args, **kwargs)
            finally:
                within[0] -= 1

        return attend

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is nn.functional.scaled_dot_product_attention and inside[0] and not within[0]:
                calls.others += 1
            return func(*args, **(kwargs or {}))

    def enter(*_: Any) -> None:
        inside[0] += 1

    def leave(*_: Any) -> None:
        inside[0] -= 1

    parts = {part for module in modules for part in module.modules()}
    hooks = [part.register_forward_pre_hook(enter) for part in parts]
    hooks += [part.register_forward_hook(leave, always_call=True) for part in parts]
    try:
        with _replaced(backend, counting), Watching():
            yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _choose(module: Any, backend: str) -> None:
    if not hasattr(module, "set_attention_backend"):
        module.set_attn_implementation(backend)
        return
    everywhere = _AttentionBackendRegistry._active_backend
    try:
        module.set_attention_backend(backend)
    finally:
        _AttentionBackendRegistry.set_active_backend(everywhere)


def _holders(module: Any) -> list[Holder]:
    """What says how a network attends: the processors of diffusers' blocks that heed it, transformers' configs."""
    if hasattr(module, "set_attention_backend"):
        processors = (getattr(part, "processor", None) for part in module.modules())
        return [(one, PROCESSOR) for one in processors if hasattr(one, PROCESSOR)]
    configs = (getattr(part, "config", None) for part in module.modules())
    return [(one, CONFIG) for one in {id(c): c for c in configs if hasattr(c, CONFIG)}.values()]


@contextmanager
def _replaced(backend: str, by: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Within, a function made of it stands for a backend."""
    if backend in PIPELINES:
        table, name = _AttentionBackendRegistry._backends, AttentionBackendName(backend)
    else:
        table, name = ALL_ATTENTION_FUNCTIONS._global_mapping, backend
    own = table.get(name)
    if own is not None:
        table[name] = by(own)
    try:
        yield
    finally:
        if own is not None:
            table[name] = own
