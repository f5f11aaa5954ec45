"""Features of pictures, videos and sounds, computed once for all rows that show them where what makes them is frozen.

A model asks its own method, such as `get_image_features`, for the features of all media of a batch. While it does, the
method is answered media by media from what is kept: the rows of a group show one picture, and a replay what its rollout
showed. What is kept was computed of one row's media alone, so it does not depend on the batch. Where the parameters
that it comes from learn, or where parts put together are not what the method makes of all, the method is left alone.
"""

import contextlib
import dataclasses
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from flowrl.policies.language.media.inputs import Piece
from flowrl.untyped import LanguageModel, Nest

METHODS = ("get_image_features", "get_video_features", "get_audio_features")
LIMIT = 2**30  # bytes that are kept of one model
RTOL, ATOL = 1e-3, 1e-4

_KEPT: "WeakKeyDictionary[LanguageModel, dict[str, Kept]]" = WeakKeyDictionary()


@contextlib.contextmanager
def kept_features(model: LanguageModel, pieces: Sequence[Piece]) -> Iterator[None]:
    """Within it, the model's features of these media, in the order of a batch, are taken from what is kept."""
    if not pieces:
        yield
        return
    own = _KEPT.setdefault(model, {})
    patched = []
    for name in METHODS:
        for module in innermost(model, name):
            kept = own.setdefault(name, Kept())
            setattr(module, name, kept.answering(module, getattr(module, name), pieces))
            patched.append((module, name))
    try:
        yield
    finally:
        for module, name in patched:
            delattr(module, name)  # of the instance: its class's own is seen again


def innermost(model: nn.Module, name: str) -> list[nn.Module]:
    """The modules with that method which have none inside them that has it too."""
    having = [module for module in model.modules() if callable(getattr(module, name, None))]
    return [m for m in having if not any(other in having for other in m.modules() if other is not m)]


class Kept:
    """What is kept of one method of a model; how parts are put together is found out by trying, once."""

    def __init__(self) -> None:
        self.outputs: OrderedDict[tuple[Any, ...], Nest] = OrderedDict()
        self.parameters: list[nn.Parameter] | None = None
        self.join: Callable[[list[Nest]], Nest] | None = None
        self.usable = True

    def answering(self, module: nn.Module, method: Callable[..., Nest], pieces: Sequence[Piece]) -> Callable[..., Nest]:
        """The method, answered from what is kept where that is possible."""

        def features(*args: Any, **kwargs: Any) -> Nest:
            bound = inspect.signature(method).bind(*args, **kwargs)
            first = next(iter(bound.arguments), "")
            own = [piece for piece in pieces if first in piece.tensors]
            if not self.usable or not own or not _separable(bound, own):
                return method(*args, **kwargs)
            if self.parameters is None:
                self.parameters = parameters_of(module, lambda: method(*args, **kwargs))
            if any(parameter.requires_grad for parameter in self.parameters):
                return method(*args, **kwargs)
            state = tuple((p.data_ptr(), p._version) for p in self.parameters)
            rows = [self._of(piece, state, method, bound) for piece in own]
            if len(rows) == 1:
                return rows[0]
            if self.join is None:
                with torch.no_grad():
                    whole = method(*args, **kwargs)
                self.join = next((join for join in (_extended, _zipped) if _alike(join, rows, whole)), None)
                self.usable = self.join is not None
                if self.join is None:
                    return whole
            return self.join(rows)

        return features

    def _of(
        self, piece: Piece, state: tuple[Any, ...], method: Callable[..., Nest], bound: inspect.BoundArguments
    ) -> Nest:
        key = (piece.digest, state)
        if key not in self.outputs:
            with torch.no_grad():
                self.outputs[key] = method(**_arguments(bound, piece))
            while len(self.outputs) > 1 and sum(map(_bytes, self.outputs.values())) > LIMIT:
                self.outputs.popitem(last=False)
        self.outputs.move_to_end(key)
        return self.outputs[key]


def _given(bound: inspect.BoundArguments) -> dict[str, Any]:
    """All arguments by name, those of **kwargs among them."""
    given = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            given |= given.pop(name, {})
    return given


def _separable(bound: inspect.BoundArguments, pieces: Sequence[Piece]) -> bool:
    """Whether every tensor among the arguments, and every list, is one that all of these rows have of their own."""
    tensors = [name for name, value in _given(bound).items() if isinstance(value, Tensor | list)]
    return all(name in piece.tensors for piece in pieces for name in tensors)


def _arguments(bound: inspect.BoundArguments, piece: Piece) -> dict[str, Any]:
    """The arguments for the media of one row alone."""
    made = {}
    for name, value in _given(bound).items():
        if isinstance(value, Tensor):
            made[name] = piece.tensors[name].to(value.device, value.dtype)
        else:
            made[name] = piece.tensors[name].tolist() if isinstance(value, list) else value
    return made


def parameters_of(module: nn.Module, call: Callable[[], Nest]) -> list[nn.Parameter]:
    """The parameters of the modules that take part in a call."""
    seen: dict[int, nn.Parameter] = {}

    def note(part: nn.Module, *_: Any) -> None:
        seen.update({id(p): p for p in part.parameters()})

    inner = [part for part in module.modules() if part is not module]
    handles = [part.register_forward_pre_hook(note) for part in inner]
    try:
        with torch.no_grad():
            call()
    finally:
        for handle in handles:
            handle.remove()
    return list(seen.values())


def _extended(parts: list[Nest]) -> Nest:
    """Outputs as one: tensors one after another, and lists too."""
    return _joined(parts, lambda lists: [item for one in lists for item in one])


def _zipped(parts: list[Nest]) -> Nest:
    """Outputs as one: tensors one after another, in lists place by place."""
    return _joined(parts, lambda lists: [_zipped(list(place)) for place in zip(*lists, strict=True)])


def _joined(parts: list[Nest], lists: Callable[[list[Nest]], list[Nest]]) -> Nest:
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        fields = [field.name for field in dataclasses.fields(first) if getattr(first, field.name) is not None]
        return type(first)(**{name: _joined([getattr(part, name) for part in parts], lists) for name in fields})
    if isinstance(first, Mapping):
        return type(first)(**{name: _joined([part[name] for part in parts], lists) for name in first})
    return type(first)(lists(parts)) if isinstance(first, list | tuple) else first


def _alike(join: Callable[[list[Nest]], Nest], rows: list[Nest], whole: Nest) -> bool:
    """Whether the rows put together are what the method made of all at once."""
    try:
        mine, theirs = list(_leaves(join(rows))), list(_leaves(whole))
    except (RuntimeError, TypeError, ValueError):
        return False
    pairs = zip(mine, theirs, strict=False)
    return len(mine) == len(theirs) and all(a.shape == b.shape and torch.allclose(a, b, RTOL, ATOL) for a, b in pairs)


def _leaves(value: Nest) -> Iterator[Tensor]:
    """The tensors of an output, in order."""
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _leaves(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _leaves(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)


def _bytes(value: Nest) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in _leaves(value))
