"""How rows are cut into pieces that fit into memory. The cuts change no result, only what runs at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """Rows that a rollout draws at once: samples first .. first + size - 1 of each of these prompts (positions)."""

    prompts: range
    first: int
    size: int


def rollout_chunks(num_prompts: int, group: int, batch: int | None) -> Iterator[Chunk]:
    """The rollout of num_prompts groups in pieces of at most `batch` rows, whole groups wherever one fits."""
    batch = num_prompts * group if batch is None else batch
    width = max(batch // group, 1)
    for start in range(0, num_prompts, width):
        prompts = range(start, min(start + width, num_prompts))
        for first in range(0, group, batch):
            yield Chunk(prompts, first, min(batch, group - first))


def prompt_chunks(num_prompts: int, rows_per_prompt: int, max_rows: int | None) -> Iterator[range]:
    """Prompts in pieces of at most max_rows rows; a piece holds one prompt at least, whose rows are cut further."""
    width = num_prompts if max_rows is None else max(max_rows // rows_per_prompt, 1)
    for start in range(0, num_prompts, width):
        yield range(start, min(start + width, num_prompts))


def whole_groups(rows: Sequence[int], labels: Sequence[int], batch: int) -> list[list[int]]:
    """Rows in pieces of at most `batch`, the rows of a label together; a larger group is a piece of its own.

    labels: of all rows, by position. Groups come in the order in which they are met.
    """
    groups: dict[int, list[int]] = {}
    for row in rows:
        groups.setdefault(labels[row], []).append(row)
    pieces: list[list[int]] = []
    for members in groups.values():
        if pieces and len(pieces[-1]) + len(members) <= batch:
            pieces[-1] += members
        else:
            pieces.append(members)
    return pieces
