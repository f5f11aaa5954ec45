"""How an iteration uses its rollout, as a recipe says it."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from torch import Tensor

from flowrl.build import kl_reward, remembered, width_pruning
from flowrl.contracts import Policy, Rollout
from flowrl.core.learning.activations import activations_in_host
from flowrl.core.learning.shrinking import MicroBatch
from flowrl.core.replay import resampled
from flowrl.core.update import Settings
from flowrl.core.values import Values
from flowrl.kinds import kind_of
from flowrl.planning.costs import arithmetic
from flowrl.recipe.schema import Recipe
from flowrl.runs.beside import main_coef
from flowrl.scoring.scorer import Scorer

TREE_MEMBERS = 2**20  # noise numbers reserved for each draw of trees, whose size may change between iterations
KEYS = {"group", "epochs", "updates", "update_by"}  # keys of train
KEYS |= {"refill", "keep", "keep_by", "skip_truncated", "drop_silent", "pairs", "sample_old", "pool"}


def settings_of(
    recipe: Recipe, iteration: int, shrinking: MicroBatch | None = None, learning: Iterable[Policy | Values] = ()
) -> Settings:
    """The settings of an iteration, counted from 0, of a recipe with the present values of its curves. shrinking: rows
    at once of a run whose micro-batches become smaller where memory runs out; learning: the policy, and its critic."""
    train = recipe.train
    modules = [module for part in learning for module in part.modules.values()]
    in_parts = kind_of(recipe).draws_in_parts(recipe)
    return Settings(
        **train.model_dump(include=KEYS),
        micro_batch=train.micro_rows,
        shrinking=shrinking,
        saving=(lambda: activations_in_host(modules)) if train.offload_activations else nullcontext,
        width=width_pruning(recipe, iteration),
        members=TREE_MEMBERS if in_parts else train.budget and train.budget.limit,
        kl_in_reward=kl_reward(recipe) is not None,
        most=None if train.expand is None else train.drawn,
        iteration=iteration,
        share=train.share,
        coef=main_coef(recipe),
    )


def phase_totals(recipe: Recipe, iteration: int, rewards: int) -> dict[str, int]:
    """What the phases of an iteration count up to, where so many rewards are asked; those that are witnesses alone are
    asked by evaluations."""
    sizes = arithmetic(recipe, iteration)
    totals = {"rollout": sizes.rollout_forwards, "score": rewards if recipe.scores_train else 0}
    return totals | {"train": sizes.updates_forwards, "values": sizes.value_forwards}


def resample_of(
    recipe: Recipe, scorer: Scorer, iteration: int
) -> Callable[[Rollout, Tensor, dict[str, Tensor]], tuple[Rollout, Tensor]] | None:
    """What draws the samples of an iteration anew; None without train.resample. Seed and iteration decide."""
    given = recipe.train.resample
    if given is None:
        return None

    def resample(rollout: Rollout, adv: Tensor, rewards: dict[str, Tensor]) -> tuple[Rollout, Tensor]:
        scores = remembered(recipe, scorer, rewards, rollout.samples)
        generator = torch.Generator().manual_seed((recipe.seed * 1_000_003 + iteration) % 2**63)
        return resampled(rollout, adv, scores, given.by, given.power, generator)

    return resample
