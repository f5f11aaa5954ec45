"""How rows are cut into pieces that fit into memory. The cuts change no result, only what runs at once."""

from collections.abc import Iterator
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
