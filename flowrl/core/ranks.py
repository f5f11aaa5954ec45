"""The processes that train one model together: who they are, and what they tell each other.

Each of them is a rank. It draws and scores the groups of its own prompts, and walks the rows of those alone; everything
small is told to all, so that every rank holds the whole rollout and works out the same advantages, losses and metrics.
Gradients are summed before a step (Rollout.own says whose rows are whose). How ranks talk is the business of
flowrl/engines; here nothing is known of it.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from flowrl.contracts import Ranks, Rollout
from flowrl.core.learning.shards import is_shard
from flowrl.core.objectives.aggregate import merge_metrics

T = TypeVar("T")


def shares(keys: Sequence[Hashable], size: int, block: int = 1) -> list[list[int]]:
    """The positions that each of `size` ranks takes: the first, and every size-th after it, and so on.

    Equal keys go to one rank, in their order: a prompt that comes twice draws other samples the second time. So do
    `block` of them that stand beside each other, whose samples are compared.
    """
    first: dict[Hashable, Hashable] = {}  # of a key, one that it has to be with; of the last one of these, itself

    def leader(key: Hashable) -> Hashable:
        while first.setdefault(key, key) != key:
            key = first[key]
        return key

    for i, key in enumerate(keys):
        first[leader(key)] = leader(keys[i - i % block])
    place: dict[Hashable, int] = {}
    taken: list[list[int]] = [[] for _ in range(size)]
    for i, key in enumerate(keys):
        taken[place.setdefault(leader(key), len(place)) % size].append(i)
    return taken


def own_rows(rollout: Rollout, rows: Tensor, ranks: Ranks, *, pairs: bool = False) -> Tensor:
    """Those of the rows int64 [r] that this rank looks at.

    Where every rank could look at any of them, they are shared out; with pairs, two that lie beside each other stay
    together.
    """
    if ranks.size == 1:
        return rows
    if rollout.own is not None:
        return rows[rollout.own[rows]]
    return rows.view(-1, 2)[ranks.rank :: ranks.size].flatten() if pairs else rows[ranks.rank :: ranks.size]


def whole_gradient(parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
    """Sums the gradients of all ranks; a parameter that none of them has moved keeps none.

    Those of shards were summed as they came.
    """
    parameters = [p for p in parameters if not is_shard(p)]
    if ranks.size == 1 or not parameters:
        return
    touched = torch.tensor([float(p.grad is not None) for p in parameters])
    ranks.total([touched])
    moved = [p for p, number in zip(parameters, touched.tolist(), strict=True) if number]
    for parameter in moved:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    ranks.total([p.grad for p in moved if p.grad is not None])


def whole_metrics(metrics: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """The reduced metrics, scalars, of one optimizer step over all ranks; see `merge_metrics`."""
    if ranks.size == 1:
        return metrics
    merged: dict[str, Tensor] = {}
    for part in ranks.gather({name: value.detach().cpu() for name, value in metrics.items()}):
        merged = merge_metrics(merged, part)
    return merged


def weighed_means(parts: Sequence[tuple[dict[str, float], float]]) -> dict[str, float]:
    """The means, each counted by its weight, of numbers by name that are means themselves."""
    parts = [(found, number) for found, number in parts if number]
    names = list(dict.fromkeys(name for found, _ in parts for name in found))
    of = {name: [(found[name], number) for found, number in parts if name in found] for name in names}
    return {name: sum(v * n for v, n in values) / sum(n for _, n in values) for name, values in of.items()}


def balance(rows: int, ranks: Ranks) -> dict[str, float]:
    """How evenly ranks have the rows that they train: most rows of a rank / mean of all, from 1 (even) to their number.

    rows: how many this rank has trained. Nothing of one process.
    """
    if ranks.size == 1:
        return {}
    each = ranks.gather(rows)
    return {"ranks/balance": max(each) * ranks.size / sum(each) if any(each) else 1.0}


def agreed(value: T, ranks: Ranks) -> T:
    """What rank 0 gives, on every rank."""
    return ranks.gather(value if ranks.rank == 0 else None)[0]  # pyright: ignore[reportReturnType]


def led(work: Callable[[], T], ranks: Ranks) -> T:
    """What comes of work that rank 0 alone does."""
    return agreed(work() if ranks.rank == 0 else None, ranks)  # pyright: ignore[reportReturnType]
