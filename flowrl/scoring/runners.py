"""The rewards of a recipe, imported and constructed, each with what the recipe says about it."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from flowrl import names
from flowrl.contracts import Reward
from flowrl.recipe.keys.rewards import RewardSpec
from flowrl.scoring import code as score_code
from flowrl.scoring.cache import ScoreCache
from flowrl.scoring.results import RewardError, reason
from flowrl.scoring.stepwise import gives_steps


@dataclass(frozen=True)
class RewardRunner:
    """A reward ready to be called, and what the recipe says about it."""

    call: Reward
    spec: RewardSpec
    cache: ScoreCache | None = None

    @property
    def groupwise(self) -> bool:
        """Whether it has to see whole groups."""
        return bool(getattr(self.call, "groupwise", False))

    @property
    def process(self) -> bool:
        """Whether it gives values of steps."""
        return gives_steps(self.call)


def load(specs: Mapping[str, RewardSpec]) -> dict[str, RewardRunner]:
    """The rewards of a recipe, imported and constructed. Raises RewardError if a constructor fails."""
    return {name: _load_one(name, spec) for name, spec in specs.items()}


def _load_one(name: str, spec: RewardSpec) -> RewardRunner:
    call = _construct(name, spec)
    cache = None
    if spec.cache:
        if getattr(call, "groupwise", False):
            raise RewardError(f"reward {name!r} ({spec.use}) compares samples of a group: remove rewards.{name}.cache")
        if (code := score_code.digest(call)) is None:
            raise RewardError(
                f"reward {name!r} ({spec.use}) has no source that can be read: remove rewards.{name}.cache"
            )
        file = spec.cache if isinstance(spec.cache, str) else None
        cache = ScoreCache(spec.use, spec.args, file, code=[code, getattr(call, "identity", None)])
    return RewardRunner(call, spec, cache)


def _construct(name: str, spec: RewardSpec) -> Reward:
    thing = names.load(spec.use, names.rewards())
    args = copy.deepcopy(dict(spec.args))  # the recipe's own, which another reward may share
    if not isinstance(thing, type):
        return partial(thing, **args)
    construct: Callable[..., Reward] = thing
    try:
        return construct(**args)
    except (Exception, SystemExit) as error:
        raise RewardError(f"reward {name!r} ({spec.use}) cannot be set up: {reason(error)}") from error
