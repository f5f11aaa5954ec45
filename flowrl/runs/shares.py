"""A run whose ranks hold parts of the weights: how they come by these, and how files are written of them."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from flowrl.contracts import Policy, Ranks
from flowrl.core.learning.learner import Learner
from flowrl.core.values import Critic, Values
from flowrl.engines.ranks import ProcessRanks
from flowrl.engines.sharding import ShardedRanks, share_out
from flowrl.kinds import kind_of
from flowrl.policies import adapters
from flowrl.policies.devices import device_of
from flowrl.recipe.schema import Recipe


def shared_out(recipe: Recipe, policy: Policy, values: Values | None, ranks: Ranks) -> Ranks:
    """The ranks of a run, which hold parts of the policy's weights from here on where the recipe says so, and of those
    of a critic and of other models as reference."""
    if recipe.parallel.kind == "replicate" or not isinstance(ranks, ProcessRanks):
        return ranks
    beside = [*kind_of(recipe).building.references(policy), *([] if values is None else [values.modules])]
    return share_out(policy.modules, recipe.parallel, ranks, device_of(recipe.device).type, beside)


def sharing_of(ranks: Ranks) -> ShardedRanks | None:
    """The ranks, where each holds a part of the weights."""
    return ranks if isinstance(ranks, ShardedRanks) else None


def write_weights(policy: Policy, learner: Learner, ranks: Ranks, folder: Path) -> None:
    """Writes the averaged weights, or those that there are, as `adapters.save` does; all ranks call it."""
    sharing = sharing_of(ranks)
    whole = contextlib.nullcontext() if sharing is None else sharing.whole(policy.modules)
    with torch.no_grad(), learner.using_average(), whole:
        if ranks.rank == 0:
            adapters.save(policy.source, policy.modules, folder)


Like = Callable[[str], Tensor | None]


def sharded_as(policy: Policy, learner: Learner, critic: Critic | None, ranks: Ranks) -> Like | None:
    """Of a tensor of a saved state, by its path there, the parameter that it is of (itself, its moments, its copies);
    None where ranks hold all weights."""
    if sharing_of(ranks) is None:
        return None

    def like(path: str) -> Tensor | None:
        room, _, rest = path.removeprefix("/").partition("/")
        modules, of = policy.modules, learner
        if room == "critic" and critic is not None:
            modules, of = critic.looks.modules, critic.learner
            room, _, rest = rest.partition("/")
        if room == "parameters":
            return adapters.trainable_by_name(modules).get(rest)
        numbers = [int(name) for name in rest.split("/")[1:] if name.isdigit()]
        return of.parameters[numbers[0]] if room == "learner" and numbers else None

    return like
