"""Random weights for a module that was built without any, parameter by parameter on the device."""

import contextlib
import math
import zlib
from collections.abc import Callable, Iterator

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn

from flowrl.untyped import Network

PERIOD = 1_000_003  # numbers drawn once and repeated: a prime, so that no two rows of a matrix are the same


def fill(build: Callable[[], Network], dtype: torch.dtype, device: torch.device) -> Network:
    """The module that `build` makes, on the CPU, frozen, with random weights: the same on every device.

    Matrices and kernels are drawn with a variance of 1 / inputs, biases are 0, scales of norms 1. Weights are made one
    by one on `device` and taken to the CPU, so that no second copy of the module is needed there. What from_pretrained
    leaves in float32 is float32.
    """
    with _default(dtype), init_empty_weights(include_buffers=False):
        module = build()
    exempt = kept_in_float32(module, dtype)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(PERIOD, generator=generator).to(device)
    made: dict[int, tuple[Tensor, nn.Parameter]] = {}  # weights that two modules share stay shared; both are held
    for place, owner in module.named_modules():
        single = any(part in place.split(".") for part in exempt)
        for name, empty in list(owner._parameters.items()):
            if empty is None:
                continue
            if id(empty) not in made:
                wanted = torch.float32 if single or name in exempt else dtype
                value = _drawn(f"{place}.{name}", empty, wanted, drawn)
                made[id(empty)] = empty, nn.Parameter(value.to("cpu"), requires_grad=False)
            owner._parameters[name] = made[id(empty)][1]
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.is_floating_point() and name not in owner._non_persistent_buffers_set:
                owner._buffers[name] = buffer.to(torch.float32 if single else dtype)
    if isinstance(module, transformers.PreTrainedModel):
        module.tie_weights()
    return module.requires_grad_(False).eval()


def kept_in_float32(module: nn.Module, dtype: torch.dtype) -> list[str]:
    """Parts that stay in float32 when a model is loaded in another dtype: for diffusers in any half precision, for
    transformers in float16, and those that it calls strict in any half precision."""
    listed = list(getattr(module, "_keep_in_fp32_modules", None) or [])
    if not isinstance(module, transformers.PreTrainedModel):
        return listed
    strict = list(getattr(module, "_keep_in_fp32_modules_strict", None) or [])
    return strict + (listed if dtype == torch.float16 else [])


def _drawn(name: str, like: Tensor, dtype: torch.dtype, drawn: Tensor) -> Tensor:
    """A parameter [*like.shape] on the device of the drawn numbers."""
    if like.dim() < 2:
        return torch.full(like.shape, 0.0 if name.endswith("bias") else 1.0, dtype=dtype, device=drawn.device)
    value = torch.empty(like.shape, dtype=dtype, device=drawn.device)
    flat, scaled = value.view(-1), (drawn / math.sqrt(like[0].numel())).to(dtype)
    at, first = 0, zlib.crc32(name.encode()) % PERIOD  # each parameter begins elsewhere
    while at < flat.numel():
        part = scaled[first : first + flat.numel() - at]
        flat[at : at + len(part)] = part
        at, first = at + len(part), 0
    return value


@contextlib.contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
