"""Gates: stand-ins for a pipeline's modules that can skip a call.

A gate delegates everything to its module. While a walk is fast-forwarded, a denoiser's gate returns zeros in the
structure that the same call had in the probe, so that the pipeline's own code runs on unharmed.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from flowrl.policies.noise import Key
from flowrl.policies.pipelines.calls.shortcuts import ASKED, shortcut
from flowrl.policies.pipelines.calls.structures import is_tensor_list, mapped
from flowrl.policies.pipelines.encoding.writing import Writer
from flowrl.policies.pipelines.steps.intercepted import Session
from flowrl.untyped import Nest


@dataclass(frozen=True, slots=True)
class _Shape:
    """A tensor in a recorded structure. Its first dimension is a multiple of `rows`."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    rows: int

    def zeros(self, rows: int) -> Tensor:
        first = self.shape[0] * rows // self.rows
        return torch.zeros((first, *self.shape[1:]), dtype=self.dtype, device=self.device)


@dataclass(frozen=True, slots=True)
class _PerRow:
    """A list with one entry per row (Z-Image): the first entry stands for all."""

    first: _Shape
    length: int
    rows: int

    def zeros(self, rows: int) -> list[Tensor]:
        return [self.first.zeros(1) for _ in range(self.length * rows // self.rows)]


class GateKeeper:
    """What all gates of a policy share: which modules are denoisers, and what their calls return.

    `skip` False runs denoisers in skipped iterations too, in a replay with gradient: for pipelines whose denoiser
    leaves something behind for later iterations (a cache, a momentum), through which the weights count as well. What
    leaves nothing behind is freed as soon as its iteration is over.
    """

    def __init__(self, session: Session):
        self.session = session
        self.denoisers: set[str] = set()
        self.guided: set[str] = set()  # those that are trained, whose calls go through `guidance`
        self.skip = True
        self.rollout_walk = False
        self.writer = Writer()
        self._outputs: dict[tuple[str, int], Nest] = {}  # (module, number of its earlier calls) -> structure
        self._calls: dict[str, int] = {}
        self._within: dict[tuple[str, int], int] = {}  # (module, iteration) -> number of its earlier calls
        # (module, call of the pass, call of the iteration, its arguments): called for every call of a denoiser
        self.listener: Callable[[str, int, int, Nest], None] | None = None
        self.dry = False  # whether calls that are listened to are answered by their stand-ins
        self.guidance: Callable[[str, int, int, nn.Module, tuple, dict], Nest] | None = None  # see guidance.py

    def begin(self, starts: Sequence[Key] = ()) -> None:
        """Starts a pass over rows of these samples."""
        self._calls.clear()
        self._within.clear()
        self.writer.begin(starts)

    def call(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> Nest:
        """The module's output, or its stand-in."""
        session = self.session
        walk, ordinal = session.walk, self._calls.get(name, 0)
        self._calls[name] = ordinal + 1
        if walk is None:
            return module(*args, **kwargs)
        if self.rollout_walk or name in self.denoisers:
            session.fresh = True
        position = self._position(name)
        if self.listener is not None and name in self.denoisers:
            self.listener(name, ordinal, position, (args, kwargs))
            if self.dry:
                return self._stand_in(name, ordinal, walk.rows)
        if name in self.denoisers and not walk.is_real(session.upcoming):
            if self.skip:
                return self._stand_in(name, ordinal, walk.rows)
            return self._run(name, position, module, args, kwargs)
        output = self._run(name, position, module, args, kwargs)
        if self.rollout_walk:
            self._record(name, ordinal, output, walk.rows)
        return output

    def _position(self, name: str) -> int:
        at = name, self.session.upcoming
        self._within[at] = self._within.get(at, -1) + 1
        return self._within[at]

    def _run(self, name: str, position: int, module: nn.Module, args: tuple, kwargs: dict) -> Nest:
        if self.guidance is None or name not in self.guided or self.session.walk is None:
            return module(*args, **kwargs)
        return self.guidance(name, position, self.session.walk.rows, module, args, kwargs)

    def is_before_the_loop(self, name: str) -> bool:
        """Whether a module is known to be called before the first step alone, so that it encodes conditions."""
        return bool(self.denoisers) and name not in self.denoisers and not self.rollout_walk

    def rows_of(self, name: str, ordinal: int) -> int:
        """Rows of the output of a recorded call, of a walk of one row."""
        leaves = tree_leaves(self._outputs[name, ordinal][0], is_leaf=lambda leaf: isinstance(leaf, _Shape | _PerRow))
        first = next(leaf for leaf in leaves if isinstance(leaf, _Shape | _PerRow))
        return (first.length if isinstance(first, _PerRow) else first.shape[0]) // first.rows

    def forget(self) -> None:
        """Drops all recorded structures, before a new probe."""
        self._outputs.clear()
        self.guidance = None

    def iterations_by_module(self) -> dict[str, list[int]]:
        """Recorded modules, each with the iterations that its calls belonged to."""
        names: dict[str, list[int]] = {}
        for (name, _), (_, iteration) in self._outputs.items():
            names.setdefault(name, []).append(iteration)
        return names

    def _record(self, name: str, ordinal: int, output: Nest, rows: int) -> None:
        def note(leaf: Nest) -> Nest:
            if isinstance(leaf, Tensor):
                return _Shape(leaf.shape, leaf.dtype, leaf.device, rows)
            if isinstance(leaf, list):
                first = leaf[0]
                return _PerRow(_Shape(first.shape, first.dtype, first.device, 1), len(leaf), rows)
            return leaf

        structure = tree_map(note, output, is_leaf=is_tensor_list)
        self._outputs[name, ordinal] = structure, self.session.upcoming

    def _stand_in(self, name: str, ordinal: int, rows: int) -> Nest:
        while (name, ordinal) not in self._outputs:  # a walk of more steps than the probe's: calls go on alike
            ordinal -= 1
        structure, _ = self._outputs[name, ordinal]
        return tree_map(lambda leaf: leaf.zeros(rows) if isinstance(leaf, _Shape | _PerRow) else leaf, structure)


@dataclass(frozen=True)
class Use:
    """How a module behind a gate is used. fetch: called before it is; write: what its `generate` goes through;
    remember: what its `encode` and its calls go through, given a name, a callable and the arguments; decode: what its
    `decode` does, given a callable and the arguments; dtype: what its `encode` is given, and gives back as it came.
    device: where it is when it is called, which pipelines ask before they call it; None: where it is now.
    """

    fetch: Callable[[], None] | None = None
    write: Writer | None = None
    remember: Callable[[str, Callable, tuple, dict], Nest] | None = None
    decode: Callable[..., Nest] | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None


class ModuleGate:
    """A stand-in that looks like its module; its calls go through the keeper, and are used as `use` says."""

    def __init__(self, module: nn.Module, name: str, keeper: GateKeeper, use: Use | None = None):
        object.__setattr__(self, "_gate", (module, name, keeper, use or Use()))

    @property
    def __class__(self) -> type:  # isinstance sees the module's class
        return type(self._gate[0])

    def __getattr__(self, name: str) -> Any:
        module, own, _, use = self._gate
        if name == "device" and use.device is not None:
            return use.device
        if name in ASKED:
            return shortcut(module, name)
        attribute = getattr(module, name)
        if name not in ("encode", "decode", "generate"):
            return attribute
        call = attribute if use.fetch is None else functools.partial(_fetched, use.fetch, attribute)
        if name == "generate":
            write = use.write
            return call if write is None else lambda *args, **kwargs: write(own, call, args, kwargs)
        if name == "decode":
            return call if use.decode is None else functools.partial(use.decode, call)
        if use.dtype is not None:
            call = functools.partial(_in_dtype, use.dtype, call)
        remember = use.remember
        return call if remember is None else lambda *args, **kwargs: remember(f"{own}.encode", call, args, kwargs)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._gate[0], name, value)

    def __call__(self, *args: object, **kwargs: object) -> Nest:
        """The module's output, or the keeper's stand-in for it."""
        module, name, keeper, use = self._gate

        def call(*args: object, **kwargs: object) -> Nest:
            if use.fetch is not None:
                use.fetch()
            return keeper.call(name, module, args, kwargs)

        if use.remember is not None and keeper.is_before_the_loop(name):
            return use.remember(name, call, args, kwargs)
        return call(*args, **kwargs)


def _fetched(fetch: Callable[[], None], call: Callable[..., Nest], *args: object, **kwargs: object) -> Nest:
    fetch()
    return call(*args, **kwargs)


def _in_dtype(dtype: torch.dtype, call: Callable[..., Nest], x: Tensor, *args: object, **kwargs: object) -> Nest:
    """What a call gives in a precision of its own, in that of x."""

    def back(tensor: Tensor) -> Tensor:
        return tensor.to(x.dtype) if tensor.is_floating_point() else tensor

    return mapped(call(x.to(dtype), *args, **kwargs), back)
