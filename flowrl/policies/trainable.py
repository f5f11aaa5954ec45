"""What of a model learns, as a recipe says: adapters, or all weights."""

from torch import nn

from flowrl.policies import adapters
from flowrl.recipe.schema import Recipe


def make_trainable(recipe: Recipe, modules: dict[str, nn.Module]) -> None:
    """Gives modules their adapters, or trains all their weights; with checkpoints of activations where asked for."""
    if recipe.lora is not None:
        lora = recipe.lora
        adapters.add_lora(
            modules, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, init=lora.init, seed=recipe.seed
        )
    else:
        adapters.train_full(modules)
    if recipe.train.gradient_checkpointing:
        adapters.checkpoint_gradients(modules)
