"""Keys of arguments by their values: texts and numbers, pictures and tensors by content."""

import hashlib
from collections.abc import Iterable

import torch
from PIL import Image
from torch import Tensor


def is_plain(value: object) -> bool:
    """Whether a value is its own key."""
    return value is None or isinstance(value, str | int | float | bool | torch.device | torch.dtype)


def content_key(value: object) -> tuple | None:
    """A key that is equal for equal arguments, pictures by content; None if something cannot be compared by value."""
    if is_plain(value):
        return ("plain", value)
    if isinstance(value, dict):
        return _all([*value, *value.values()])
    if isinstance(value, list | tuple):
        return _all(value)
    if isinstance(value, Image.Image):
        return value.size, value.mode, hashlib.blake2b(value.tobytes()).digest()
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        return value.shape, value.dtype, value.device, hashlib.blake2b(content).digest()
    return None


def _all(values: Iterable) -> tuple | None:
    keys = tuple(map(content_key, values))
    return None if None in keys else keys
