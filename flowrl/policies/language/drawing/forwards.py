"""One forward pass of a causal language model, of rows padded on the left."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from flowrl.policies.compiling import CACHES
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.media.features import kept_features
from flowrl.policies.language.media.inputs import (
    TYPES,
    Inputs,
    Piece,
    joined,
    pieces_of,
    tensors_of,
    type_names,
    types_of,
)
from flowrl.policies.language.media.positions import positions_of, type_of_drawn
from flowrl.untyped import LanguageModel

_WHOLE = "_flowrl_reads_whole"


def forward_arguments(model: LanguageModel) -> set[str]:
    """The names of the arguments of the model's forward."""
    return set(inspect.signature(type(model).forward).parameters)


def cache_argument(model: LanguageModel) -> str | None:
    """The name of the key-value cache in the model's forward; None for one that reads all again for each token, of
    itself or since it is told to (`read_whole`).

    Raises PolicyError for a model that encodes its prompt apart from what it writes, for one that does not write token
    by token, and for one whose cache holds what it was given otherwise than what it writes.
    """
    kind = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise PolicyError(f"{kind} is an encoder and a decoder; give a causal transformer language model")
    if hasattr(model, "can_generate") and not hasattr(model, "_prepare_position_ids_for_generation"):
        raise PolicyError(f"{kind} does not write token by token; give a causal transformer language model")
    name = next((n for n in CACHES if n in forward_arguments(model)), None)
    layers = [] if name is None else DynamicCache(config=model.config).layers
    if any(hasattr(layer, "set_prefill_length") for layer in layers):
        raise PolicyError(
            f"{kind} forgets what it wrote long ago and not what it was given, so a replay of both at once is not what "
            "was drawn; give another model"
        )
    return None if getattr(model, _WHOLE, False) else name


def read_whole(model: LanguageModel, whole: bool = True) -> bool:
    """Has a model read all of a row again for each token, whatever cache it takes; whether it did so before.

    Copies of the model do as it does.
    """
    before = getattr(model, _WHOLE, False)
    setattr(model, _WHOLE, whole)
    return before


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), int64 [R, L] each, of rows of different lengths, padded on the left."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


@dataclass(frozen=True)
class Then:
    """What goes beside the next token of each row, a text's: positions [..., R, 1], and types [R, 1, ...] by name."""

    positions: Tensor
    types: Mapping[str, Tensor]

    def keep(self, index: Tensor) -> "Then":
        """That of these rows, int64, some of them more than once."""
        return Then(self.positions.index_select(-2, index), {n: v[index] for n, v in self.types.items()})

    def join(self, other: "Then") -> "Then":
        """That of these rows, and of others behind them."""
        types = {}
        for name in dict.fromkeys((*self.types, *other.types)):
            mine, theirs = self.types.get(name), other.types.get(name)
            like = theirs if mine is None else mine
            assert like is not None
            mine = like.new_zeros(self.positions.shape[-2], *like.shape[1:]) if mine is None else mine
            theirs = like.new_zeros(other.positions.shape[-2], *like.shape[1:]) if theirs is None else theirs
            types[name] = joined([mine, theirs])
        return Then(torch.cat([self.positions, other.positions], -2), types)

    def following(self) -> "Beside":
        """What goes beside that token, and the one after it."""
        return Beside(self.positions, Then(self.positions + 1, self.types), {}, self.types)


@dataclass(frozen=True)
class Beside:
    """What goes into a model that reads pictures beside ids [R, N]: their positions [..., R, N], and other arguments.

    then: of the tokens that follow. tensors: of the media; types: by name, with an entry for each id [R, N, ...].
    pieces: the media that the tensors hold, in order.
    """

    positions: Tensor
    then: Then
    tensors: Mapping[str, Tensor]
    types: Mapping[str, Tensor]
    pieces: tuple[Piece, ...] = ()

    def last(self, number: int, read: Sequence[Inputs], device: torch.device, dtype: torch.dtype) -> "Beside":
        """Of the last `number` ids alone, of rows whose media `read` stand among them."""
        types = {name: value[:, -number:] for name, value in self.types.items()}
        tensors = tensors_of(read, device, dtype)
        return Beside(self.positions[..., -number:], self.then, tensors, types, pieces_of(read))


def beside(
    model: LanguageModel, contexts: Sequence[Sequence[int]], inputs: Sequence[Inputs] | None, attention: Tensor
) -> Beside | None:
    """What goes beside contexts that stand where attention [R, N] says; None for a model of text (inputs None)."""
    if inputs is None:
        return None
    positions, then = positions_of(model, contexts, inputs, attention)
    types = {}
    for name in type_names(inputs):
        drawn = type_of_drawn(model, name)
        if drawn is not None and not all(inputs):
            raise PolicyError(
                f"{type(model).__name__} reads a prompt in both directions, and is told where it ends beside pictures "
                "alone; give prompts with pictures, or another model"
            )
        types[name] = types_of(inputs, name, attention, behind=1, drawn=drawn)
    after = Then(then, {name: value[:, -1:] for name, value in types.items()})
    own = {name: value[:, :-1] for name, value in types.items()}
    return Beside(positions, after, tensors_of(inputs, model.device, model.dtype), own, pieces_of(inputs))


def arguments_of(
    model: LanguageModel, attention: Tensor, number: int, shown: Beside | None, known: set[str]
) -> dict[str, Any]:
    """The arguments of the last `number` positions, of those `known`: attention mask, positions, and what is beside."""
    arguments: dict[str, Any] = {"attention_mask": attention}
    if "position_ids" in known:
        plain = (attention.cumsum(-1) - 1).clamp(min=0)[:, -number:]
        arguments["position_ids"] = plain if shown is None else shown.positions
    if "sample" in known:
        arguments["sample"] = False  # noise in what is heard, which no replay could repeat
    if shown is not None:
        types = {name: value for name, value in shown.types.items() if name in TYPES or value.any()}
        arguments |= {name: value for name, value in (*shown.tensors.items(), *types.items()) if name in known}
    return arguments


def forward(
    model: LanguageModel,
    ids: Tensor,
    attention: Tensor,
    keep: int,
    cache: DynamicCache | None = None,
    shown: Beside | None = None,
) -> Tensor:
    """Logits [R, keep, V] of the last `keep` of positions `ids` [R, N]; attention [R, past + N] covers the cache."""
    known = forward_arguments(model)
    arguments: dict[str, object] = {"use_cache": cache is not None}
    arguments |= arguments_of(model, attention, ids.shape[1], shown, known)
    if cache is not None:
        name = cache_argument(model)
        assert name is not None  # a model that reads all again is given none
        arguments[name] = cache
    if "logits_to_keep" in known:
        arguments["logits_to_keep"] = keep
    with kept_features(model, () if shown is None else shown.pieces):
        return model(input_ids=ids, **arguments).logits[:, -keep:]
