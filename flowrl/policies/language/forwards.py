"""One forward pass of a causal language model, of rows padded on the left."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from flowrl.policies.errors import PolicyError
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


def forward(
    model: LanguageModel, ids: Tensor, attention: Tensor, keep: int, cache: DynamicCache | None = None
) -> Tensor:
    """Logits [R, keep, V] of the last `keep` of positions `ids` [R, N]; attention [R, past + N] covers the cache."""
    known = forward_arguments(model)
    arguments: dict[str, object] = {"attention_mask": attention, "use_cache": cache is not None}
    if cache is not None:
        arguments[cache_argument(model)] = cache
    if "position_ids" in known:
        arguments["position_ids"] = (attention.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    if "logits_to_keep" in known:
        arguments["logits_to_keep"] = keep
    return model(input_ids=ids, **arguments).logits[:, -keep:]
