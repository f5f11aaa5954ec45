"""What a processor makes of a row's pictures, videos and sounds, and how it goes into a model beside the row's ids.

A row holds its media as tensors by the names of the model's arguments. Rows that go through a model together have
theirs joined along the dimension along which the processor joins those of several texts (mostly the first), row by row,
smaller ones filled up with zeros in the others: the order in which transformers' models look for the features of their
placeholders. `LanguagePolicy.prepare` proves that this gives each row what it gets alone.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from flowrl.policies.errors import PolicyError

# arguments with a number for each id, which are placeholders, of what: 0 where a processor gives none. Others with an
# entry for each id are known by asking (media.layout_of)
TYPES = ("mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True)
class Piece:
    """The media of one place in a row: a prompt's, or those of one observation.

    begin: how many ids of the row come before those that came with it; length: how many came with it, up to its last
    placeholder. tensors: by name of the model's argument; types: by name what has an entry for each id, [n + 1, ...]
    with n >= length, the last of them that of every id which follows. along: of a tensor, the dimension along which
    those of several rows are joined, where it is not the first. lists: the tensors that the model takes as lists.
    counts: of a tensor with indices into another, how many places of that one the piece has: those of pieces that are
    joined count on.
    """

    begin: int
    length: int
    tensors: Mapping[str, Tensor] = field(repr=False)
    types: Mapping[str, Tensor] = field(repr=False)
    along: Mapping[str, int] = field(default_factory=dict, repr=False)
    digest: str = ""
    lists: frozenset[str] = frozenset()
    counts: Mapping[str, int] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        length: int,
        tensors: Mapping[str, Tensor],
        types: Mapping[str, Tensor],
        along: Mapping[str, int] | None = None,
        lists: Collection[str] = (),
        counts: Mapping[str, int] | None = None,
    ) -> "Piece":
        """A piece that begins with its row; its digest tells its tensors apart from others."""
        found = blake2b(digest_size=12)
        for name in sorted(tensors):
            value = tensors[name].contiguous()
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.view(torch.uint8).numpy().data if value.numel() else b"")
        made = {name: value if len(value) > length else _with_text(value) for name, value in types.items()}
        more = {"along": dict(along or {}), "lists": frozenset(lists), "counts": dict(counts or {})}
        return cls(0, length, tensors, made, digest=found.hexdigest(), **more)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Piece":
        """The same place with others of these names and shapes."""
        other = Piece.of(self.length, tensors, self.types, self.along, self.lists, self.counts)
        return replace(other, begin=self.begin)

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

    def before(self, other: "Inputs") -> "Inputs":
        """These in the places of the first of another, with the rest of it behind them."""
        return Inputs((*self.pieces, *other.pieces[len(self.pieces) :]))

    def then(self, other: "Inputs", at: int) -> "Inputs":
        """These, and those of ids that are appended to a row which has `at` of them."""
        return Inputs(self.pieces + tuple(replace(piece, begin=piece.begin + at) for piece in other.pieces))

    def state(self) -> list[dict[str, Any]]:
        """What a checkpoint keeps of them."""
        return [
            {name: getattr(p, name) for name in ("begin", "length")}
            | {name: dict(getattr(p, name)) for name in ("tensors", "types", "along")}
            | {"lists": sorted(p.lists), "counts": dict(p.counts)}
            for p in self.pieces
        ]

    @classmethod
    def of_state(cls, state: Sequence[Mapping[str, Any]]) -> "Inputs":
        """Those that a state was made of."""
        names = ("length", "tensors", "types", "along", "lists", "counts")  # the last two are younger than others
        made = [(Piece.of(**{n: saved[n] for n in names if n in saved}), saved["begin"]) for saved in state]
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
    """The tensors of all rows by name, those of floats in `dtype`; nothing for rows of text.

    What the model takes as lists of whole numbers is such a list.
    """
    pieces = pieces_of(rows)
    names = dict.fromkeys(name for piece in pieces for name in piece.tensors)
    made: dict[str, Any] = {}
    for name in names:
        own = [piece for piece in pieces if name in piece.tensors]
        value = joined([*_counted_on(own, name)], own[0].along.get(name, 0))
        made[name] = value.to(device, dtype if value.is_floating_point() else None)
        if name in own[0].lists:
            made[name] = value.tolist()
    return made


def _counted_on(pieces: Sequence[Piece], name: str) -> Iterator[Tensor]:
    """The tensors of that name; indices count on behind those of the pieces before, negative ones are none."""
    before = 0
    for piece in pieces:
        value = piece.tensors[name]
        yield torch.where(value < 0, value, value + before) if before else value
        before += piece.counts.get(name, 0)


def type_names(rows: Sequence[Inputs]) -> tuple[str, ...]:
    """The arguments with an entry for each id that these rows have, those of every row first."""
    return tuple(dict.fromkeys((*TYPES, *(name for piece in pieces_of(rows) for name in piece.types))))


def types_of(rows: Sequence[Inputs], name: str, attention: Tensor, behind: int = 0, drawn: int | None = None) -> Tensor:
    """The argument of that name, int64 [R, N + behind, ...]; attention [R, N] shows where rows begin; 0 for all text.

    behind: so many further ids, which are text, at the end. drawn: what an id has that was not of the prompt or of what
    was shown (None: what the last of those ids has). Raises PolicyError for one row's media of several places
    where an entry tells which of them an id sees.
    """
    found = [piece.types[name] for piece in pieces_of(rows) if name in piece.types]
    sizes = [max(value.shape[i] for value in found) for i in range(1, found[0].dim())] if found else []
    count, width = len(rows), attention.shape[1] + behind
    made = torch.zeros((count, width, *sizes), dtype=found[0].dtype if found else torch.int64)
    for i, (row, first) in enumerate(zip(rows, attention.argmax(1).tolist(), strict=True)):
        if sizes and len(row.pieces) > 1:
            raise PolicyError(
                f"the model's {name} tells which picture each token sees, and cannot be told of pictures that come "
                "later in a conversation; give another model, or tools that answer in words"
            )
        for piece in row.pieces:
            if name in piece.types:
                value = _filled(piece.types[name], sizes)
                at = first + piece.begin
                own = value[: width - at]
                made[i, at : at + len(own)] = own
                made[i, at + len(own) :] = value[-1]
                if drawn is not None:
                    made[i, at + len(value) - 1 :] = drawn
    return made.to(attention.device)


def _with_text(value: Tensor) -> Tensor:
    """With an entry for the ids that follow, which are text."""
    return torch.cat([value, torch.zeros_like(value[:1])])


def _filled(value: Tensor, sizes: Sequence[int]) -> Tensor:
    left = [size - own for size, own in zip(sizes, value.shape[1:], strict=True)]
    return torch.nn.functional.pad(value, [n for size in reversed(left) for n in (0, size)])
