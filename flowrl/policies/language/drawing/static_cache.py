"""Rows whose keys and values lie in buffers of fixed size, so that a token is one call of fixed shapes.

Each row lies in a place of the buffers from column 0 on, whatever the lengths of others, and its new tokens go behind
its own. A row that has ended leaves its place: it is computed on, unseen, until the rows at work fit the next smaller
size of a short ladder, which they are then moved to; a waiting row takes a free place. Sizes follow from the rows at
work alone, so that a rollout is the same whatever was drawn before it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from flowrl.policies.errors import PolicyError
from flowrl.policies.language.drawing.forwards import Beside, arguments_of, forward_arguments
from flowrl.policies.language.drawing.prefixes import Prefix, can_join, holds_tokens, prefix_of
from flowrl.policies.language.drawing.reading import Reading
from flowrl.policies.language.drawing.static_steps import StepInputs, Steps
from flowrl.untyped import LanguageModel

LEAST_ROWS, LEAST_COLUMNS, EVEN = 2, 64, 8  # EVEN: buffers have a multiple of so many columns


def rung(number: int, least: int) -> int:
    """The smallest of least * (1, 1.5, 2, 3, 4, 6, ...) that is not below a number."""
    size = least
    while size < number:
        size = size * 3 // 2 if size * 3 // 2 >= number else size * 2
    return size


def buffer_size(rows: int, tokens: int) -> tuple[int, int]:
    """(rows, columns) of buffers for at most so many rows, each of at most so many tokens."""
    return max(rows, LEAST_ROWS), -(-tokens // EVEN) * EVEN


def refuse_static(model: LanguageModel) -> None:
    """Raises PolicyError for a model whose keys and values cannot lie in buffers of fixed size."""
    kind, remedy = type(model).__name__, "set rollout.cache=true"
    if not can_join(model):
        raise PolicyError(
            f"rollout.cache: got static, but {kind} has layers that do not keep every token (a sliding window, a "
            f"recurrent state), or no cache; {remedy}"
        )
    if "position_ids" not in forward_arguments(model):
        problem = "counts positions from the columns of a mask, which are not those of a row here"
        raise PolicyError(f"rollout.cache: got static, but {kind} {problem}; {remedy}")


class StaticCache:
    """How a policy keeps keys and values, where they do not grow. backend: of torch.compile, for the step."""

    def __init__(self, backend: str = "inductor"):
        self.backend = backend

    def buffers(self, model: LanguageModel, rows: int, tokens: int) -> "StaticBuffers":
        """Buffers for a rollout: at most so many rows at once, each with at most so many tokens, prompt and all."""
        return StaticBuffers(Steps(model, self.backend), *buffer_size(rows, tokens))


class StaticBuffers:
    """Memory for keys and values of all layers, and for what else a step reads; it is taken with the first row.

    What stands in it has the size `shape`, (rows, columns), and lies without gaps from the beginning.
    """

    def __init__(self, steps: Steps, rows: int, columns: int):
        self.steps, self.model, self.rows, self.columns = steps, steps.model, rows, columns
        self.shape = (0, 0)
        self._flat: list[tuple[Tensor, Tensor]] = []
        self._form: list[tuple[tuple[int, int], tuple[int, int]]] = []  # heads and size, of keys and of values
        self._seen: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        self.token = self.at = self.live = torch.zeros(0)
        self.positions: Tensor | None = None
        self.types: dict[str, Tensor] = {}

    def fitting(self, rows: int, tokens: int) -> tuple[int, int]:
        """The size for so many rows, of which the longest has so many tokens."""
        return min(rung(rows, LEAST_ROWS), self.rows), min(rung(tokens, LEAST_COLUMNS), self.columns)

    def take(self, cache: DynamicCache) -> None:
        """Takes the memory for keys and values like those of a cache, unless it has it."""
        if self._flat:
            return
        layers: Any = cache.layers
        for layer in layers:
            both = layer.keys, layer.values
            self._form.append(tuple((part.shape[1], part.shape[3]) for part in both))
            keys, values = (part.new_zeros(self.rows * self.columns * part.shape[1] * part.shape[3]) for part in both)
            self._flat.append((keys, values))
        whole = torch.zeros(self.rows, dtype=torch.int64, device=self.model.device)
        self.token, self.at, self.live = whole[:, None].clone(), whole, whole.clone()

    def layers(self, shape: tuple[int, int] | None = None) -> list[tuple[Tensor, Tensor]]:
        """Of each layer (keys, values) [rows, heads, columns, size], of the size that there is or another one."""
        rows, columns = shape = shape or self.shape
        if shape not in self._seen:
            self._seen[shape] = [
                tuple(
                    flat[: rows * heads * columns * size].view(rows, heads, columns, size)
                    for flat, (heads, size) in zip(parts, forms, strict=True)
                )
                for parts, forms in zip(self._flat, self._form, strict=True)
            ]
        return self._seen[shape]

    def resize(self, shape: tuple[int, int], places: Sequence[int]) -> list[int]:
        """Gives what stands in the buffers another size; the new places of the rows that stand at these."""
        rows, columns = shape
        free = iter(sorted(set(range(rows)) - set(places)))
        new = [place if place < rows else next(free) for place in places]
        moved = [(old, to) for old, to in zip(places, new, strict=True) if old != to]
        if moved:
            old, to = torch.tensor(moved, device=self.model.device).T
            for part in (part for layer in self.layers() for part in layer):
                part[to] = part[old]
        if columns != self.shape[1]:
            number, width = max(new, default=-1) + 1, min(columns, self.shape[1])
            for before, after in zip(self.layers(), self.layers(shape), strict=True):
                for part, other in zip(before, after, strict=True):
                    kept = part[:number, :, :width].clone()  # both lie at the same place
                    other.zero_()
                    other[:number, :, :width] = kept
        self.shape = shape
        return new

    def put(self, places: Tensor, cache: DynamicCache, attention: Tensor, index: Tensor) -> None:
        """Writes the rows `index` of a cache, whose tokens stand where attention [r, N] says, to places, from column 0.

        places, index: int64 [n].
        """
        attention = attention[index].bool()
        width = int(attention.sum(1).max())
        columns = (~attention).int().argsort(dim=1, stable=True)[:, :width]  # those of tokens first, in order
        beyond = ~attention.gather(1, columns)
        source: Any = cache.layers
        for layer, parts in zip(source, self.layers(), strict=True):
            for part, target in zip((layer.keys, layer.values), parts, strict=True):
                found = part[index[:, None], :, columns].masked_fill(beyond[..., None, None], 0)
                target[places] = 0  # what stood there may be no number
                target[places, :, :width] = found.transpose(1, 2)

    def beside(self, at: Tensor, places: Tensor, shown: Beside | None) -> None:
        """Sets what a step reads beside tokens and positions, where rows have come or gone.

        at, places int64 [R]: the columns that the rows' next tokens go to, and where the rows stand.
        """
        self.live.zero_().index_fill_(0, places, 1)
        self.at.zero_().index_copy_(0, places, at)
        if shown is None:
            return
        if self.positions is None:
            self.positions = self._room(shown.positions.movedim(-2, 0))
        known = forward_arguments(self.model)
        types = arguments_of(self.model, torch.ones_like(at)[:, None], 1, shown, known)
        for name in shown.types:
            if name in types and name not in self.types:
                self.types[name] = self._room(types[name])
        for name, room in self.types.items():
            room.zero_()
            if name in shown.types:
                room.index_copy_(0, places, shown.types[name])

    def step(self, token: Tensor, places: Tensor, positions: Tensor | None) -> Tensor:
        """Logits [R, V] behind one token int64 [R] of each row; positions [..., R, 1], where they are not columns."""
        rows = self.shape[0]
        self.token.index_copy_(0, places, token[:, None])
        if self.positions is not None and positions is not None:
            self.positions.index_copy_(0, places, positions.movedim(-2, 0))
        own = None if self.positions is None else self.positions[:rows]
        types = {name: value[:rows] for name, value in self.types.items()}
        logits = self.steps(StepInputs(self.token[:rows], self.at[:rows], self.layers(), own, types))[places]
        self.at += self.live
        return logits

    def _room(self, like: Tensor) -> Tensor:
        """Zeros for all rows of what is [R, ...]."""
        return like.new_zeros(self.rows, *like.shape[1:])


class StaticReading(Reading):
    """Rows `index` of what has been read, int64, some of them more than once, which go on in buffers of fixed size.

    They are put there with their first step, or as they join others; `cache` is only what they were read into.
    Raises PolicyError where that does not hold all tokens and nothing else.
    """

    def __init__(self, reading: Reading, index: Tensor, buffers: StaticBuffers):
        model = buffers.model
        if reading.cache is None or not holds_tokens(reading.cache, reading.attention):
            raise PolicyError(
                f"rollout.cache: got static, but {type(model).__name__} keeps no cache of its tokens alone beside what "
                "it is shown; set rollout.cache=true"
            )
        own = index.tolist()
        inputs = None if reading.inputs is None else [reading.inputs[i] for i in own]
        then = None if reading.then is None else reading.then.keep(index)
        contexts = [reading.contexts[i] for i in own]
        super().__init__(reading.logits[index], reading.attention, reading.cache, contexts, then, inputs, reading.pad)
        self.buffers, self.index = buffers, index
        self.places: list[int] | None = None  # in the buffers; None before they stand there
        self.lengths = reading.attention.sum(1)[index].tolist()
        self.where = index  # places, on the device

    def keep(self, index: Tensor) -> None:
        """Goes on with these rows, int64, each of them once."""
        own = index.tolist()
        self.contexts, self.lengths = [self.contexts[i] for i in own], [self.lengths[i] for i in own]
        self.inputs = None if self.inputs is None else [self.inputs[i] for i in own]
        self.then = None if self.then is None else self.then.keep(index)
        if self.places is None:
            self.index = self.index[index]
        else:
            self._stand([self.places[i] for i in own])

    def join(self, fresh: Reading) -> None:
        """Takes the rows of another reading, which then stand in the same buffers, behind its own."""
        assert isinstance(fresh, StaticReading) and self.places is not None and fresh.cache is not None
        self.lengths += fresh.lengths
        self.inputs = None if self.inputs is None else [*self.inputs, *(fresh.inputs or ())]
        self.logits, self.contexts = torch.cat([self.logits, fresh.logits]), [*self.contexts, *fresh.contexts]
        if self.then is not None and fresh.then is not None:
            self.then = self.then.join(fresh.then)
        self._put(self.places, fresh.cache, fresh.attention, fresh.index)

    def step(self, model: LanguageModel, token: Tensor) -> None:
        """Reads one further token int64 [R] of each row."""
        if self.places is None:
            assert self.cache is not None
            self._put([], self.cache, self.attention, self.index)
            self.cache = None
        assert self.places is not None
        if (shape := self.buffers.fitting(len(self.places), max(self.lengths) + 1)) != self.buffers.shape:
            self._stand(self.buffers.resize(shape, self.places))
        shown = None if self.then is None else self.then.following()
        self.logits = self.buffers.step(token, self.where, None if shown is None else shown.positions)
        self.lengths = [number + 1 for number in self.lengths]
        self.then = None if shown is None else shown.then

    def prefix(self, row: int) -> Prefix | None:
        """What is kept of one row."""
        if self.places is None:
            at = int(self.index[row])
            return prefix_of(self.cache, at, self.attention[at])
        place, number = self.places[row], self.lengths[row]
        layers = [tuple(part[place, :, :number].clone() for part in layer) for layer in self.buffers.layers()]
        return Prefix(tuple(keys for keys, _ in layers), tuple(values for _, values in layers))

    def _put(self, stand: list[int], cache: DynamicCache, attention: Tensor, index: Tensor) -> None:
        """Finds places for rows of a cache behind those that stand at these, and writes them there."""
        buffers = self.buffers
        buffers.take(cache)
        shape = buffers.fitting(len(self.lengths), max(self.lengths) + 1)
        stand = buffers.resize(shape, stand)
        free = sorted(set(range(shape[0])) - set(stand))[: len(index)]
        buffers.put(torch.tensor(free, device=attention.device), cache, attention, index)
        self._stand([*stand, *free])

    def _stand(self, places: list[int]) -> None:
        """Tells the buffers where the rows stand now, and how far each is."""
        self.places, device = places, self.attention.device
        self.where = torch.tensor(places, dtype=torch.int64, device=device)
        shown = None if self.then is None else self.then.following()
        self.buffers.beside(torch.tensor(self.lengths, device=device), self.where, shown)
