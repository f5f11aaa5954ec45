"""Keys and values of the tokens that completions share, so that each of these tokens is computed once.

A prefix is what a cache holds of one row, without its padding: it can be cut to its first tokens, and prefixes of
different lengths make one cache again, padded on the left. Only caches that hold every token can be taken apart so;
of others (sliding windows, recurrent states) nothing is kept, and the tokens are computed again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from flowrl.policies.language.drawing.forwards import cache_argument
from flowrl.untyped import LanguageModel


@dataclass(frozen=True)
class Prefix:
    """Keys and values [heads, tokens, width], one of each a layer."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def __len__(self) -> int:
        return self.keys[0].shape[1]

    def cut(self, number: int) -> "Prefix":
        """The first `number` tokens of it."""
        return Prefix(tuple(k[:, :number] for k in self.keys), tuple(v[:, :number] for v in self.values))


def prefix_of(cache: DynamicCache | None, row: int, attention: Tensor) -> Prefix | None:
    """What the cache holds of one row, by its attention [N]; None where the cache does not hold every token."""
    if cache is None:
        return None
    real, layers = attention.nonzero()[:, 0], []
    for layer in cache.layers:
        if type(layer) is not DynamicLayer or layer.keys is None or layer.values is None:
            return None
        if layer.keys.shape[-2] != len(attention):
            return None
        layers.append((layer.keys[row][:, real], layer.values[row][:, real]))
    return Prefix(tuple(k for k, _ in layers), tuple(v for _, v in layers))


def cache_of(model: LanguageModel, prefixes: Sequence[Prefix | None]) -> tuple[DynamicCache, Tensor]:
    """(cache, attention mask int64 [R, N]) of rows that begin so, padded on the left; N is 0 where none has any."""
    cache = DynamicCache(config=model.config)
    width = max((len(p) for p in prefixes if p is not None), default=0)
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in (0 if p is None else len(p) for p in prefixes)])
    first = next((p for p in prefixes if p is not None), None)
    if first is None or width == 0:
        return cache, torch.zeros(len(prefixes), 0, dtype=torch.int64, device=model.device)
    for layer in range(len(first.keys)):
        keys, values = (
            torch.stack([_padded(None if p is None else part(p)[layer], part(first)[layer], width) for p in prefixes])
            for part in (lambda p: p.keys, lambda p: p.values)
        )
        cache.update(keys, values, layer)
    return cache, mask.to(model.device)


def select(cache: DynamicCache, index: Tensor) -> None:
    """Goes on with these rows of the cache, int64, some of them more than once.

    Layers with recurrent states choose their rows as in a beam search: batch_select_indices is not theirs, or leaves
    the states as they are.
    """
    layers: list[Any] = cache.layers
    for layer in layers:
        choose = layer.reorder_cache if hasattr(layer, "recurrent_states") else layer.batch_select_indices
        choose(index)


def can_join(model: LanguageModel) -> bool:
    """Whether caches of the model hold every token, so that rows of different lengths can stand in one."""
    return cache_argument(model) is not None and all(
        type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers
    )


def holds_tokens(cache: DynamicCache | None, attention: Tensor) -> bool:
    """Whether all that a cache holds is of the tokens of attention [R, N], and nothing of pictures beside them."""
    layers: Any = [] if cache is None else cache.layers
    return cache is not None and all(
        layer.keys is None or layer.keys.shape[-2] == attention.shape[1] for layer in layers
    )


def joined(cache: DynamicCache, attention: Tensor, fresh: DynamicCache, shown: Tensor) -> Tensor:
    """The attention [R + r, N] of a cache that takes the rows of another behind its own, in place.

    attention [R, M], shown [r, m]: of both. Columns in which no row has a token are left out.
    """
    begin = attention.shape[1] - int(attention.sum(1).max())
    attention = attention[:, begin:]
    width = max(attention.shape[1], shown.shape[1])
    own, other = width - attention.shape[1], width - shown.shape[1]

    def left(values: Tensor, number: int) -> Tensor:  # zeros before the tokens, of [..., tokens, size]
        return torch.nn.functional.pad(values, (0, 0, number, 0))

    both: Any = zip(cache.layers, fresh.layers, strict=True)
    for layer, new in both:
        if layer.keys is not None and new.keys is not None:
            layer.keys = torch.cat([left(layer.keys[..., begin:, :], own), left(new.keys, other)])
            layer.values = torch.cat([left(layer.values[..., begin:, :], own), left(new.values, other)])
    pad = torch.nn.functional.pad
    return torch.cat([pad(attention, (own, 0)), pad(shown, (other, 0))])


def _padded(part: Tensor | None, like: Tensor, width: int) -> Tensor:
    """One row of a cache [heads, width, size], zeros where it has no token."""
    if part is None:
        return like.new_zeros(like.shape[0], width, like.shape[2])
    return torch.nn.functional.pad(part, (0, 0, width - part.shape[1], 0))
