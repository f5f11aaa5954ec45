"""Rewards of tests, ready to be called."""

from typing import Any

from flowrl.contracts import Reward
from flowrl.recipe.keys.rewards import RewardSpec
from flowrl.scoring.cache import ScoreCache
from flowrl.scoring.scorer import RewardRunner


def runner(call: Reward, weight: float = 1.0, *, cache: ScoreCache | None = None, **said: Any) -> RewardRunner:
    """A reward of which a recipe says this; all else by default. Nothing of it is checked."""
    return RewardRunner(call, RewardSpec.model_construct(use="of_a_test", weight=weight, **said), cache)
