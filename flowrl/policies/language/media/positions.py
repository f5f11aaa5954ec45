"""Positions and types of the tokens of models that read pictures, as each model's own helpers tell them."""

import contextlib
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from flowrl.policies.language.media.inputs import TYPES, Inputs, tensors_of, type_names, types_of
from flowrl.untyped import LanguageModel

FAULTS = (AttributeError, KeyError, IndexError, TypeError, ValueError)
_DRAWN: WeakKeyDictionary[LanguageModel, dict[str, int | None]] = WeakKeyDictionary()


def forget(model: LanguageModel) -> None:
    """Removes what an earlier call has left on the model about the positions of its pictures."""
    for module in model.modules():
        if getattr(module, "rope_deltas", None) is not None:
            module.rope_deltas = None


def positions_of(
    model: LanguageModel, contexts: Sequence[Sequence[int]], inputs: Sequence[Inputs], attention: Tensor
) -> tuple[Tensor, Tensor]:
    """(int64 [..., R, N], [..., R, 1]): positions of contexts where attention [R, N] has them, and of the token behind.

    The leading dimension is that of models whose positions are those of a picture's rows and columns. Each row is asked
    for alone, up to its last placeholder; every token behind it is one further, in a rollout as in a replay.
    """
    known: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}
    rows, behind = [], []
    first, width = attention.argmax(1).tolist(), attention.shape[1]
    for ids, own, at in zip(contexts, inputs, first, strict=True):
        key = (tuple(ids[: own.end]), own.key)
        if key not in known:
            known[key] = _asked(model, ids[: own.end], own)
        begin, then = known[key]
        row = torch.cat([begin, then + torch.arange(len(ids) - own.end)], -1)[..., : width - at]
        rows.append(torch.nn.functional.pad(row, (at, width - at - row.shape[-1])))
        behind.append(then + len(ids) - own.end)
    return torch.stack(rows, -2).to(model.device), torch.stack(behind, -2).to(model.device)


def _asked(model: LanguageModel, ids: Sequence[int], inputs: Inputs) -> tuple[Tensor, Tensor]:
    """(positions [..., n] of the first n ids of a row, the position [..., 1] of a text's token behind them)."""
    text = 0  # any token of a text: its type says that it is none of the placeholders
    row = torch.tensor([[*ids, text]], device=model.device)
    attention = torch.ones_like(row)
    given = {"attention_mask": attention, "input_ids": row} | tensors_of([inputs], model.device, model.dtype)
    if inputs:
        types = {name: types_of([inputs], name, attention) for name in type_names([inputs])}
        given |= {name: torch.cat([value[:, :-1], 0 * value[:, -1:]], 1) for name, value in types.items()}
    forget(model)
    found = model._prepare_position_ids_for_generation(row, given)
    forget(model)
    found = found[..., 0, :].cpu()
    return found[..., :-1], found[..., -1:]


def type_of_drawn(model: LanguageModel, name: str) -> int | None:
    """The number in the argument of that name that the model's own helper gives a drawn token, after a prompt of zeros.

    Such as of models that read a prompt in both directions, and what they draw in one. None where it is 0 as well.
    """
    known = _DRAWN.setdefault(model, {})
    if name not in known:
        known[name] = _behind_zeros(model, name) if name in TYPES else None
    return known[name]


def _behind_zeros(model: LanguageModel, name: str) -> int | None:
    row = torch.zeros(1, 1, dtype=torch.int64)
    given = {name: row, "attention_mask": torch.ones_like(row)}
    with contextlib.suppress(*FAULTS):  # a helper that asks for more than these
        return int(model._update_model_kwargs_for_generation(ModelOutput(), given)[name][0, -1]) or None
    return None
