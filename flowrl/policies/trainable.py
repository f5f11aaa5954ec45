"""Makes the part of a model trainable that the recipe names: adapters, or all weights but those of a tower."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from flowrl.policies import adapters
from flowrl.policies.attending import choose_attention
from flowrl.policies.compiling import compile_networks
from flowrl.policies.computing import compute_as_inputs
from flowrl.policies.devices import device_of
from flowrl.policies.errors import PolicyError
from flowrl.policies.recomputing import checkpoint_gradients
from flowrl.recipe.checks.computing import adapters_as_model
from flowrl.recipe.checks.freezing import TOWER
from flowrl.recipe.keys.lora import MATCH
from flowrl.recipe.schema import Recipe

MEDIA = ("image", "video", "audio")


def make_trainable(recipe: Recipe, modules: dict[str, nn.Module]) -> None:
    """Adds the recipe's adapters, or makes its weights trainable; with chosen attention kernels, recomputed
    activations and compiled blocks where they are asked for."""
    if recipe.attention is not None:
        choose_attention(modules, recipe.attention.backend)
    if recipe.lora is not None:
        adapters.add_lora(modules, **recipe.lora.options, seed=recipe.seed)
        if adapters_as_model(recipe, device_of(recipe.device).type):
            compute_as_inputs(modules)
        if recipe.lora.begun is not None:
            adapters.go_on_from(modules, Path(recipe.lora.begun).expanduser())
    else:
        adapters.train_full(modules)
        freeze(modules, recipe.freeze)
    if recipe.train.gradient_checkpointing:
        checkpoint_gradients(modules, recipe.train.recompute_every)
    if recipe.compile is not None:
        compile_networks(modules, **recipe.compile.model_dump())


def freeze(modules: Mapping[str, nn.Module], parts: Sequence[str]) -> None:
    """Leaves parts of models as they are: `tower`, or `match:` and a regular expression for whole names of weights.

    Raises PolicyError where a part is none of a model's, and where nothing is left that learns.
    """
    for name, module in modules.items():
        for part in parts:
            kind, own = type(module).__name__, _tower(module)
            if part != TOWER:
                pattern = re.compile(part.removeprefix(MATCH))
                own = [weight for label, weight in module.named_parameters() if pattern.fullmatch(label)]
            if not own:
                what = "transformers names no tower of it" if part == TOWER else "no weight has such a name"
                raise PolicyError(f"freeze: {part!r} is no part of {name} ({kind}): {what}; give match:REGEX")
            for weight in own:
                weight.requires_grad_(False)
        if parts and not any(weight.requires_grad for weight in module.parameters()):
            raise PolicyError(f"freeze: nothing of {name} ({type(module).__name__}) is left that learns; name less")


def _tower(module: Any) -> list[nn.Parameter]:
    """The weights of what reads pictures, videos and sounds."""
    find = getattr(module, "get_encoder", None)
    found = [find(modality=kind) for kind in MEDIA] if find is not None else []
    inside = [part for part in found if part is not module and isinstance(part, nn.Module)]
    return list({id(weight): weight for part in inside for weight in part.parameters()}.values())
