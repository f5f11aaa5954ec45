"""Rounds: forwards and backwards that all ranks do at once, because each holds a part of the weights.

A module whose weights are shared out cannot be called by one rank alone: every block gathers its weights from all of
them. What ranks have to do differs, though: one has more rows, a longer text, a deeper tree. So before every call and
every backward they agree on what comes next, by one number each. Those that have it to do, do it; the others walk along
with inputs of their own, which count for nothing: what comes of them is dropped, and their gradient is 0. Whoever waits
for the others (`Rounds.rest`) has nothing to do, until all wait.

    WHOLE   all weights of one model are gathered and kept, so that its calls without gradient need no round
    LOOK    a call without gradient
    STEP    a call with gradient
    BACK    the backward of one such call, which is an autograd graph of its own

Less comes first: a rank with a backward waits until no other has calls before its own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from flowrl.untyped import Nest

WHOLE, LOOK, STEP, BACK, REST = range(5)


class Round(NamedTuple):
    """What a rank has to do: its kind, the number of the module (of WHOLE that of the model), and that of the weights
    (0: those that learn)."""

    kind: int
    module: int = 0
    weights: int = 0

    @property
    def code(self) -> int:
        """The round as a number below 0."""
        return -1 - (self.kind + 5 * (self.module + 64 * self.weights))

    @staticmethod
    def of(code: int) -> "Round":
        """The round of a number."""
        rest, kind = divmod(-1 - code, 5)
        return Round(kind, rest % 64, rest // 64)


class Agreeing(Protocol):
    """Ranks that agree on numbers; see `ProcessRanks`."""

    rank: int
    size: int

    def agree(self, number: int) -> list[int]:
        """See `ProcessRanks.agree`."""
        ...


class Sharded(Protocol):
    """A module whose weights are shared out."""

    def gather(self) -> None:
        """Gathers all weights, with the other ranks, until `shard` is called."""
        ...

    def shard(self) -> None:
        """Keeps the own part of the weights alone."""
        ...

    def close(self) -> None:
        """Behind a call in the middle of a backward: leaves the weights as behind any other call."""
        ...


class Weights(Protocol):
    """The copies of the weights by name; see core/learning/copies.py."""

    @property
    def used(self) -> str | None:
        """See `Copies.used`."""
        ...

    def shown(self, name: str | None) -> AbstractContextManager[None]:
        """See `Copies.shown`."""
        ...


NAMES = (None, "average", "reference", "old")  # of weights, by their number


class Rounds:
    """The calls of some modules, of which every rank holds a part.

    whole: whether calls without gradient are made with all weights gathered (memory for time), or round by round.
    models: of each module, the number of the model that it is of: one model is whole at a time (None: all are of one).
    """

    def __init__(
        self,
        ranks: Agreeing,
        modules: Sequence[nn.Module],
        sharded: Sequence[Sharded],
        *,
        whole: bool,
        models: Sequence[int] | None = None,
    ):
        self.weights: Weights | None = None
        self.idle = 0  # how often this rank walked along
        self._ranks, self._whole, self._sharded = ranks, whole, sharded
        self._models = [0] * len(modules) if models is None else models
        self._gathered: tuple[int, int] | None = None  # the model and weights that are here, since a round WHOLE
        self._last = 0  # the weights of the last round
        self._calls = [_Calls(module) for module in modules]
        self._graphs = [[0] * ranks.size for _ in modules]  # of idle calls, that each rank holds
        for i, calls in enumerate(self._calls):
            calls.replace(lambda args, kwargs, i=i: self._call(i, args, kwargs))

    def rest(self) -> None:
        """Walks along until all ranks rest."""
        self._reach(Round(REST))
        self._part()
        for i, calls in enumerate(self._calls):
            calls.graphs.clear()
            self._graphs[i] = [0] * self._ranks.size

    # ------------------------------------------------------------------ what this rank has to do

    def _call(self, module: int, args: tuple, kwargs: dict) -> Nest:
        calls, weights = self._calls[module], NAMES.index(None if self.weights is None else self.weights.used)
        calls.learn(args, kwargs)
        if not torch.is_grad_enabled():
            if not self._whole:
                self._reach(Round(LOOK, module, weights))
                self._ready(weights)
            elif self._gathered != (model := self._models[module], weights):
                self._reach(Round(WHOLE, model, weights))
                self._gather(model, weights)
            return calls.run(args, kwargs)
        self._reach(Round(STEP, module))
        self._ready(0)
        return _island(lambda a, k: calls.run(a, k), lambda: self._back(module), args, kwargs)

    def _back(self, module: int) -> None:
        """Before the backward of a call."""
        self._reach(Round(BACK, module))
        self._ready(0)

    def _reach(self, own: Round) -> None:
        """Walks along with rounds of others until this one is due."""
        while True:
            rounds = [Round.of(code) for code in self._ranks.agree(own.code)]
            due = min(rounds)
            if due.kind == BACK:
                self._provide(due.module, rounds)
            if due.kind == STEP:
                for rank, asked in enumerate(rounds):
                    self._graphs[due.module][rank] += asked != due
            if due == own:
                return
            self.idle += 1
            self._along(due)

    def _provide(self, module: int, rounds: Sequence[Round]) -> None:
        """Makes sure that every rank that walks along in a backward has a graph for that; counts them."""
        held = self._graphs[module]
        others = [rank for rank, asked in enumerate(rounds) if asked != Round(BACK, module)]
        if any(not held[rank] for rank in others):
            self._along(Round(STEP, module))
            held[:] = [number + 1 for number in held]
        for rank in others:
            held[rank] -= 1

    # ------------------------------------------------------------------ what it does for others

    def _along(self, due: Round) -> None:
        if due.kind == WHOLE:
            self._gather(due.module, due.weights)
            return
        self._ready(due.weights)
        calls = self._calls[due.module]
        with self._shown(due.weights):
            if due.kind == LOOK:
                with torch.no_grad():
                    calls.idle()
                self._sharded[due.module].close()
            elif due.kind == STEP:
                with torch.enable_grad():
                    calls.graphs.append([leaf for leaf in _tensors(calls.idle()) if leaf.requires_grad])
                self._sharded[due.module].close()
            else:
                graph = calls.graphs.pop(0)
                torch.autograd.backward(graph, [torch.zeros_like(leaf) for leaf in graph])

    def _gather(self, model: int, weights: int) -> None:
        self._part()
        with self._shown(weights):
            for sharded, of in zip(self._sharded, self._models, strict=True):
                if of == model:
                    sharded.gather()
        self._gathered = model, weights

    def _ready(self, weights: int) -> None:
        """Before a round of parts: nothing is left of other weights."""
        if self._gathered is not None or self._last != weights:
            self._part()
        self._last = weights

    def _part(self) -> None:
        for sharded in self._sharded:
            sharded.shard()
        self._gathered = None

    def _shown(self, weights: int) -> AbstractContextManager[None]:
        name = NAMES[weights]
        if self.weights is None or self.weights.used == name:
            return nullcontext()
        return self.weights.shown(name)


class _Calls:
    """How a module is called: by this rank, and for others."""

    def __init__(self, module: nn.Module):
        self.module, self.kind = module, type(module)
        self.graphs: list[list[Tensor]] = []  # of idle calls, whose backward is still to come
        self.known: tuple[tuple, dict] | None = None
        if hasattr(module, "can_generate"):  # a language model: one token is the least that it reads
            device = next(module.parameters()).device
            one = torch.zeros(1, 1, dtype=torch.int64, device=device)
            self.known = (), {"input_ids": one, "attention_mask": torch.ones_like(one), "use_cache": False}

    def replace(self, call: Callable[[tuple, dict], Nest]) -> None:
        """From here on calls of the module go through `call`; its class keeps its name and its parents."""
        base = next(kind for kind in self.kind.__mro__ if not kind.__module__.startswith("torch.distributed"))
        own = {"__call__": lambda module, *args, **kwargs: call(args, kwargs)}
        own |= {"__module__": base.__module__, "__qualname__": base.__qualname__, "called_whole": True}
        self.module.__class__ = type(base.__name__, (self.kind,), own)

    def run(self, args: tuple, kwargs: dict) -> Nest:
        """The module's output."""
        return self.kind.__call__(self.module, *args, **kwargs)

    def learn(self, args: tuple, kwargs: dict) -> None:
        """Remembers the first call, for when others have to be walked along with."""
        if self.known is None:
            self.known = tree_map(
                lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf, (args, kwargs)
            )

    def idle(self) -> Nest:
        """A call that counts for nothing."""
        if self.known is None:
            raise RuntimeError(f"{self.kind.__name__} was called by another rank before this one has prepared it")
        args, kwargs = self.known
        return self.run(args, dict(kwargs))


def _tensors(output: Nest) -> Iterator[Tensor]:
    return (leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor))


def _island(run: Callable[[tuple, dict], Nest], before: Callable[[], None], args: tuple, kwargs: dict) -> Nest:
    """The output of a call as a graph of its own, whose backward begins with `before` and is whole when it ends."""
    leaves, shape = tree_flatten((args, kwargs))
    inputs = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
    held: dict[str, Any] = {}

    def inner(*given: Tensor) -> tuple[Tensor, ...]:
        for i, value in zip(inputs, given, strict=True):
            leaves[i] = value
        held["outputs"], held["shape"] = tree_flatten(run(*tree_unflatten(leaves, shape)))
        held["graph"] = [i for i, o in enumerate(held["outputs"]) if isinstance(o, Tensor) and o.requires_grad]
        return tuple(held["outputs"][i] for i in held["graph"])

    anchor = torch.zeros((), requires_grad=True)
    graph: Any = _Island.apply(inner, before, anchor, *(leaves[i] for i in inputs))
    outputs = list(held["outputs"])
    for i, value in zip(held["graph"], graph, strict=True):
        outputs[i] = value
    return tree_unflatten(outputs, held["shape"])


class _Island(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inner: Callable[..., tuple[Tensor, ...]], before: Callable, anchor: Tensor, *given: Tensor
    ) -> Any:
        with torch.enable_grad():
            ctx.inputs = [value.detach().requires_grad_() for value in given]
            ctx.outputs = inner(*ctx.inputs)
        ctx.before = before
        ctx.set_materialize_grads(False)
        return tuple(value.detach() for value in ctx.outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        ctx.before()
        pairs = [(o, g) for o, g in zip(ctx.outputs, gradients, strict=True) if g is not None]
        torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
        found = [value.grad for value in ctx.inputs]
        ctx.outputs = ctx.inputs = ()
        return None, None, None, *found
