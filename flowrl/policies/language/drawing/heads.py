"""What makes logits of a model's last states, apart from the model, so that they can be made a chunk at a time."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowrl.policies.language.drawing.forwards import (
    Beside,
    arguments_of,
    beside,
    forward,
    forward_arguments,
    left_padded,
)
from flowrl.policies.language.media.features import kept_features
from flowrl.policies.language.media.inputs import Inputs
from flowrl.untyped import LanguageModel


class Head(NamedTuple):
    """What makes logits, `size` of them, of the states of a model's last layer."""

    module: nn.Module
    size: int


def states(model: LanguageModel, ids: Tensor, attention: Tensor, keep: int, shown: Beside | None = None) -> Tensor:
    """What the last `keep` logits are made of, [R, keep, D]; arguments as in `forward`."""
    base = model.base_model
    arguments: dict[str, object] = {"use_cache": False}
    arguments |= arguments_of(base, attention, ids.shape[1], shown, forward_arguments(base))
    with kept_features(model, () if shown is None else shown.pieces):
        return base(input_ids=ids, **arguments).last_hidden_state[:, -keep:]


@torch.no_grad()
def head_of(model: LanguageModel, ids: Sequence[int], inputs: Inputs | None = None) -> Head | None:
    """The model's head, where logits are nothing but what it makes of the last layer's states, seen by this row."""
    base, head = model.base_model, model.get_output_embeddings()
    if base is model or head is None or getattr(model, "called_whole", False):  # of which ranks hold parts
        return None
    row, attention = left_padded([ids], 0, model.device)
    shown = beside(model, [ids], None if inputs is None else [inputs], attention)
    whole = forward(model, row, attention, len(ids), shown=shown)
    try:
        made = head(states(model, row, attention, len(ids), shown))
    except (AttributeError, TypeError, RuntimeError):  # a layout of its own: its logits are taken whole
        return None
    close = made.shape == whole.shape and torch.allclose(made, whole, rtol=1e-5, atol=1e-5)
    return Head(head, whole.shape[-1]) if close else None
