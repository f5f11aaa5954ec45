"""How an iteration uses its rollout, as a recipe says it."""

from flowrl.build import kl_reward, width_pruning
from flowrl.core.update import Settings
from flowrl.kinds import kind_of
from flowrl.recipe.schema import Recipe
from flowrl.runs.beside import main_coef

TREE_MEMBERS = 2**20  # noise numbers reserved for each draw of trees, whose size may change between iterations
KEYS = {"group", "epochs", "updates", "update_by", "micro_batch"}  # keys of train
KEYS |= {"refill", "keep", "keep_by", "skip_truncated", "drop_silent", "pairs", "sample_old", "pool"}


def settings_of(recipe: Recipe, iteration: int) -> Settings:
    """The settings of an iteration, counted from 0, of a recipe with the present values of its curves."""
    train = recipe.train
    in_parts = kind_of(recipe).draws_in_parts(recipe)
    return Settings(
        **train.model_dump(include=KEYS),
        width=width_pruning(recipe, iteration),
        members=TREE_MEMBERS if in_parts else train.budget and train.budget.limit,
        kl_in_reward=kl_reward(recipe) is not None,
        iteration=iteration,
        share=train.share,
        coef=main_coef(recipe),
    )
