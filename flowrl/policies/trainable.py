"""Makes the part of a model trainable that the recipe names: adapters, or all weights."""

from torch import nn

from flowrl.policies import adapters
from flowrl.recipe.schema import Recipe


def make_trainable(recipe: Recipe, modules: dict[str, nn.Module]) -> None:
    """Adds the recipe's adapters, or makes all weights trainable; with gradient checkpointing if requested."""
    if recipe.lora is not None:
        lora = recipe.lora
        adapters.add_lora(
            modules, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, init=lora.init, seed=recipe.seed
        )
    else:
        adapters.train_full(modules)
    if recipe.train.gradient_checkpointing:
        adapters.checkpoint_gradients(modules)
