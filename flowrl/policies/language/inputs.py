"""What a processor makes of a row's pictures, videos and sounds, and how it goes into a model beside the row's ids.

A row holds its media as tensors by the names of the model's arguments. Rows that go through a model together have
theirs joined along the dimension along which the processor joins those of several texts (mostly the first), row by row,
smaller ones filled up with zeros in the others: the order in which transformers' models look for the features of their
placeholders. `LanguagePolicy.prepare` proves that this gives each row what it gets alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

TYPES = ("mm_token_type_ids", "token_type_ids")  # arguments with a number for each id: which are placeholders, of what


@dataclass(frozen=True)
class Piece:
    """The media of one place in a row: a prompt's, or those of one observation.

    begin: how many ids of the row come before those that came with it; length: how many came with it, up to its last
    placeholder. tensors: by name of the model's argument; types: int64 [length] by name, see TYPES. along: of a tensor,
    the dimension along which those of several rows are joined, where it is not the first.
    """

    begin: int
    length: int
    tensors: Mapping[str, Tensor] = field(repr=False)
    types: Mapping[str, Tensor] = field(repr=False)
    along: Mapping[str, int] = field(default_factory=dict, repr=False)
    digest: str = ""

    @classmethod
    def of(
        cls,
        length: int,
        tensors: Mapping[str, Tensor],
        types: Mapping[str, Tensor],
        along: Mapping[str, int] | None = None,
    ) -> "Piece":
        """A piece that begins with its row; its digest tells its tensors apart from others."""
        found = blake2b(digest_size=12)
        for name in sorted(tensors):
            value = tensors[name].contiguous()
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.view(torch.uint8).numpy().data if value.numel() else b"")
        cut = {name: value[:length] for name, value in types.items()}
        return cls(0, length, tensors, cut, dict(along or {}), found.hexdigest())

    @property
    def end(self) -> int:
        """How many ids of the row there are up to its last placeholder."""
        return self.begin + self.length


@dataclass(frozen=True)
class Inputs:
    """The media of one row in the order of their placeholders; of a row of text alone nothing."""

    pieces: tuple[Piece, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.pieces)

    @property
    def end(self) -> int:
        """How many ids of the row there are up to the last placeholder."""
        return self.pieces[-1].end if self.pieces else 0

    @property
    def key(self) -> tuple[tuple[int, str], ...]:
        """What tells rows of the same ids apart that show other media."""
        return tuple((piece.begin, piece.digest) for piece in self.pieces)

    def then(self, other: "Inputs", at: int) -> "Inputs":
        """These, and those of ids that are appended to a row which has `at` of them."""
        return Inputs(self.pieces + tuple(replace(piece, begin=piece.begin + at) for piece in other.pieces))

    def state(self) -> list[dict[str, Any]]:
        """What a checkpoint keeps of them."""
        return [
            {name: getattr(p, name) for name in ("begin", "length")}
            | {name: dict(getattr(p, name)) for name in ("tensors", "types", "along")}
            for p in self.pieces
        ]

    @classmethod
    def of_state(cls, state: Sequence[Mapping[str, Any]]) -> "Inputs":
        """Those that a state was made of."""
        names = ("length", "tensors", "types", "along")
        made = [(Piece.of(*(saved[name] for name in names)), saved["begin"]) for saved in state]
        return cls(tuple(replace(piece, begin=begin) for piece, begin in made))

    def cut(self, number: int) -> "Inputs":
        """Those of the first `number` ids of the row."""
        return Inputs(tuple(piece for piece in self.pieces if piece.end <= number))


EMPTY = Inputs()


def joined(values: Sequence[Tensor], along: int = 0) -> Tensor:
    """Tensors of rows as one: along one dimension, each filled up with zeros to the largest in the others."""
    sizes = [max(value.shape[i] for value in values) for i in range(values[0].dim())]
    filled = []
    for value in values:
        left = [0 if i == along else size - value.shape[i] for i, size in enumerate(sizes)]
        filled.append(torch.nn.functional.pad(value, [n for size in reversed(left) for n in (0, size)]))
    return torch.cat(filled, along)


def pieces_of(rows: Sequence[Inputs]) -> tuple[Piece, ...]:
    """The media of all rows, in order."""
    return tuple(piece for row in rows for piece in row.pieces)


def tensors_of(rows: Sequence[Inputs], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of all rows by name, those of floats in `dtype`; nothing for rows of text."""
    pieces = pieces_of(rows)
    names = dict.fromkeys(name for piece in pieces for name in piece.tensors)
    made = {}
    for name in names:
        own = [piece for piece in pieces if name in piece.tensors]
        made[name] = joined([piece.tensors[name] for piece in own], own[0].along.get(name, 0))
    return {name: v.to(device, dtype if v.is_floating_point() else None) for name, v in made.items()}


def types_of(rows: Sequence[Inputs], name: str, attention: Tensor) -> Tensor:
    """The argument of that name (TYPES), int64 like attention [R, N], which shows where rows begin; 0 for all text."""
    made = torch.zeros(attention.shape, dtype=torch.int64)
    for i, (row, first) in enumerate(zip(rows, attention.argmax(1).tolist(), strict=True)):
        for piece in row.pieces:
            if name in piece.types:
                at = first + piece.begin
                made[i, at : at + piece.length] = piece.types[name]
    return made.to(attention.device)
