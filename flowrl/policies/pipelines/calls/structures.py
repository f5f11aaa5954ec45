"""Results of modules, whatever their classes: their tensors, and copies with other ones."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl.untyped import Nest


def is_tensor_list(node: object) -> bool:
    """Whether a node of a structure is a list of tensors, one for each row."""
    return isinstance(node, list) and bool(node) and all(isinstance(item, Tensor) for item in node)


def tensors_of(value: Nest) -> Iterator[Tensor]:
    """All tensors of a result, in a fixed order."""
    if isinstance(value, Tensor):
        yield value
    else:
        for part in _parts(value):
            yield from tensors_of(part)


def _parts(value: Nest) -> Sequence[Nest]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple):
        return list(value)
    return list(vars(value).values()) if hasattr(value, "__dict__") else []


def mapped(value: Nest, change: Callable[[Tensor], Tensor]) -> Nest:
    """A copy of a result, whatever its classes, with its tensors changed."""
    return _rebuilt([value], lambda tensors: change(tensors[0]))


def merged(each: Sequence[Nest]) -> Nest:
    """The result of several rows from those of each."""
    return _rebuilt(each, lambda tensors: torch.cat(list(tensors)) if tensors[0].dim() else tensors[0])


def _rebuilt(values: Sequence[Any], join: Callable[[Sequence[Tensor]], Tensor]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return join(values)
    if isinstance(first, Mapping):
        entries = {key: _rebuilt([value[key] for value in values], join) for key in first}
        return entries if type(first) is dict else type(first)(**entries)
    if isinstance(first, list | tuple):
        return type(first)(_rebuilt(one, join) for one in zip(*values, strict=True))
    if not hasattr(first, "__dict__") or not any(True for _ in tensors_of(first)):
        return first
    new = copy.copy(first)
    for name in vars(first):
        setattr(new, name, _rebuilt([getattr(value, name) for value in values], join))
    return new
