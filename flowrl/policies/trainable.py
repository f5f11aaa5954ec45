"""Makes the part of a model trainable that the recipe names: adapters, or all weights."""

from pathlib import Path

from torch import nn

from flowrl.policies import adapters
from flowrl.policies.recomputing import checkpoint_gradients
from flowrl.recipe.schema import Recipe


def make_trainable(recipe: Recipe, modules: dict[str, nn.Module]) -> None:
    """Adds the recipe's adapters, or makes all weights trainable; with gradient checkpointing if requested."""
    if recipe.lora is not None:
        adapters.add_lora(modules, **recipe.lora.options, seed=recipe.seed)
        if recipe.lora.begun is not None:
            adapters.go_on_from(modules, Path(recipe.lora.begun).expanduser())
    else:
        adapters.train_full(modules)
    if recipe.train.gradient_checkpointing:
        checkpoint_gradients(modules, recipe.train.recompute_every)
