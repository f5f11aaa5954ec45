"""How prompts are cut into pieces that fit into memory. The cuts change no result, only what runs at once."""

from collections.abc import Iterator


def prompt_chunks(num_prompts: int, rows_per_prompt: int, max_rows: int | None) -> Iterator[range]:
    """Prompts in pieces of at most max_rows rows; a piece holds one prompt at least, whose rows are cut further."""
    width = num_prompts if max_rows is None else max(max_rows // rows_per_prompt, 1)
    for start in range(0, num_prompts, width):
        yield range(start, min(start + width, num_prompts))
