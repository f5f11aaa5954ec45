"""Texts of completions, and where in its text each token ends."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from flowrl.untyped import Tokenizer


def said(tokens: Tensor, length: Tensor, stop: Collection[int]) -> list[list[int]]:
    """The ids of completions [R, K] of these lengths [R], without the token that ended them."""
    rows = [row[:n].tolist() for row, n in zip(tokens, length.tolist(), strict=True)]
    return [row[:-1] if row[-1] in stop else row for row in rows]


def texts_of(tokenizer: Tokenizer, rows: Sequence[Sequence[int]]) -> list[str]:
    """Each row of ids as text, without special tokens."""
    return tokenizer.batch_decode(list(rows), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def token_ends(tokenizer: Tokenizer, tokens: Tensor, length: Tensor, stop: Collection[int]) -> Tensor:
    """How many characters of a row's text there are when a token has been said, float32 [R, K].

    What ends a completion, and padding, adds none. A character of which several tokens say a part counts from the last
    of them on. Where the texts of single tokens do not make up the whole, every prefix is decoded.
    """
    rows = said(tokens, length, stop)
    ends = torch.zeros(tokens.shape)
    for i, (row, text) in enumerate(zip(rows, texts_of(tokenizer, rows), strict=True)):
        parts = texts_of(tokenizer, [[token] for token in row])
        if "".join(parts) == text:
            counts = torch.tensor([len(part) for part in parts]).cumsum(0)
        else:
            prefixes = texts_of(tokenizer, [row[: j + 1] for j in range(len(row))])
            counts = torch.tensor([_common(prefix, text) for prefix in prefixes]).cummax(0).values
        ends[i, : len(row)] = counts.float()
        ends[i, len(row) :] = len(text)
    return ends


def _common(prefix: str, text: str) -> int:
    """How many first characters two texts share: an unfinished character is shown as another."""
    if text.startswith(prefix):
        return len(prefix)
    return next(i for i, (a, b) in enumerate(zip(prefix + "\0", text + "\1", strict=False)) if a != b)
