"""A run whose ranks hold parts of the weights: how they come by these, and how files are written of them."""

import contextlib
from pathlib import Path

import torch
from torch import Tensor

from flowrl.contracts import Policy
from flowrl.core.learner import Learner
from flowrl.core.ranks import Ranks
from flowrl.engines.ranks import ProcessRanks
from flowrl.engines.sharding import ShardedRanks, share_out
from flowrl.policies import adapters
from flowrl.policies.devices import device_of
from flowrl.recipe.schema import Recipe


def shared_out(recipe: Recipe, policy: Policy, ranks: Ranks) -> Ranks:
    """The ranks of a run, which hold parts of the policy's weights from here on where the recipe says so."""
    if recipe.parallel.kind == "replicate" or not isinstance(ranks, ProcessRanks):
        return ranks
    return share_out(policy.modules, recipe.parallel, ranks, device_of(recipe.device).type)


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


def parameter_of(path: str, policy: Policy, learner: Learner) -> Tensor | None:
    """The parameter that a tensor of a saved state is of, by its path there: itself, its moments, its copies."""
    room, _, rest = path.removeprefix("/").partition("/")
    if room == "parameters":
        return adapters.trainable_by_name(policy.modules).get(rest)
    numbers = [int(name) for name in rest.split("/")[1:] if name.isdigit()]
    return learner.parameters[numbers[0]] if room == "learner" and numbers else None
