"""One forward pass of a causal language model, of rows padded on the left."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from flowrl.policies.errors import PolicyError
from flowrl.policies.language.features import kept_features
from flowrl.policies.language.inputs import TYPES, Inputs, Piece, pieces_of, tensors_of, types_of
from flowrl.policies.language.positions import positions_of
from flowrl.untyped import LanguageModel

CACHES = ("cache", "past_key_values")  # what transformers calls the argument, newest name first


def forward_arguments(model: LanguageModel) -> set[str]:
    """The names of the arguments of the model's forward."""
    return set(inspect.signature(type(model).forward).parameters)


def cache_argument(model: LanguageModel) -> str:
    """The name of the key-value cache in the model's forward. Raises PolicyError for a model without one."""
    name = next((n for n in CACHES if n in forward_arguments(model)), None)
    if name is None:
        raise PolicyError(f"{type(model).__name__} takes no key-value cache; give a causal transformer language model")
    return name


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, attention mask), int64 [R, L] each, of rows of different lengths, padded on the left."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


@dataclass(frozen=True)
class Beside:
    """What goes into a model that reads pictures beside ids [R, N]: their positions [..., R, N], and other arguments.

    then: the positions [..., R, 1] of the tokens that follow. pieces: the media that the arguments hold, in order.
    """

    positions: Tensor
    then: Tensor
    arguments: Mapping[str, Tensor]
    pieces: tuple[Piece, ...] = ()

    def last(self, number: int, read: Sequence[Inputs], device: torch.device, dtype: torch.dtype) -> "Beside":
        """Of the last `number` ids alone, of rows whose media `read` stand among them."""
        types = {name: value[:, -number:] for name, value in self.arguments.items() if name in TYPES}
        return Beside(
            self.positions[..., -number:], self.then, types | tensors_of(read, device, dtype), pieces_of(read)
        )


def beside(
    model: LanguageModel, contexts: Sequence[Sequence[int]], inputs: Sequence[Inputs] | None, attention: Tensor
) -> Beside | None:
    """What goes beside contexts that stand where attention [R, N] says; None for a model of text (inputs None)."""
    if inputs is None:
        return None
    positions, then = positions_of(model, contexts, inputs, attention)
    arguments = tensors_of(inputs, model.device, model.dtype)
    arguments |= {name: types_of(inputs, name, attention) for name in TYPES}
    return Beside(positions, then, arguments, pieces_of(inputs))


def following(model: LanguageModel, positions: Tensor) -> Beside:
    """What goes beside one further token of each row, which is text, at these positions [..., R, 1]."""
    rows = positions.shape[-2]
    return Beside(
        positions, positions + 1, {n: torch.zeros(rows, 1, dtype=torch.int64).to(model.device) for n in TYPES}
    )


def arguments_of(
    model: LanguageModel, attention: Tensor, number: int, shown: Beside | None, known: set[str]
) -> dict[str, Tensor]:
    """The arguments of the last `number` positions, of those `known`: attention mask, positions, and what is beside."""
    arguments = {"attention_mask": attention}
    if "position_ids" in known:
        plain = (attention.cumsum(-1) - 1).clamp(min=0)[:, -number:]
        arguments["position_ids"] = plain if shown is None else shown.positions
    if shown is not None:
        arguments |= {name: value for name, value in shown.arguments.items() if name in known}
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
        arguments[cache_argument(model)] = cache
    if "logits_to_keep" in known:
        arguments["logits_to_keep"] = keep
    with kept_features(model, () if shown is None else shown.pieces):
        return model(input_ids=ids, **arguments).logits[:, -keep:]
