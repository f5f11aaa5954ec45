"""Advantages of rows that form trees, or whose steps were valued: read off step_stats `node`, `tree` and `value`.

Rows are samples; what they are compared by is the weighted sum of the rewards. See core/advantages/returns.py for the
formulas.
"""

from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import Rollout
from flowrl.core.advantages.normalise import float64, group_stats, normalise, whiten
from flowrl.core.advantages.returns import prefix_average, value_differences

CREDITS = ("prefix", "trees", "values", "nodes")
READS = {"prefix": "node", "trees": "tree", "values": "value", "nodes": "value"}


def tree_advantages(credit: str, total: Tensor, rollout: Rollout, **options: Any) -> Tensor:
    """Advantages of rows, [R], or of their decisions, [R, K], float32, by one of CREDITS.

    total [R]: rewards of the rows, NaN where not known, whose advantages are 0. prefix: less the means of the leaves
    that share a prefix, averaged over depths, then scaled (TreePO). trees: normalised within the tree plus normalised
    within the prompt (Tree-GRPO, arXiv:2509.21240, eq. 7). values: differences of the values of steps, the outcome at
    the end (VinePPO). nodes: values of segments less the mean outcome of the prompt's leaves (DeepSearch,
    arXiv:2509.25454, eq. 8). options: scale, eps, unbiased, lengths, clip and factor of `advantages.advantages`.
    Raises ValueError where the rollout lacks what a credit reads.
    """
    name = READS[credit]
    if name not in rollout.step_stats:
        raise ValueError(f"advantage.credit={credit} needs the {name} of each decision: set generation.tree or again")
    stats, group = rollout.step_stats[name], rollout.samples.group.cpu()
    known = ~total.isnan().cpu()
    how = {k: options[k] for k in ("eps", "unbiased", "lengths") if k in options}
    if credit == "prefix":
        adv = _by_prefix(float64(total), known, stats, group, options["scale"], how)
    elif credit == "trees":
        of_tree = group * (int(stats.max()) + 1) + stats[:, 0].long()
        adv = sum(
            (normalise(total, labels, scale=options["scale"], **how) for labels in (of_tree, group)), torch.tensor(0.0)
        )
    elif credit == "values":
        adv = _by_values(float64(total), rollout, stats)
    else:
        adv = _by_nodes(rollout, stats, group)
    if credit in ("values", "nodes") and options["scale"] == "whiten":
        adv = whiten(adv, rollout.mask)
    adv = adv * options.get("factor", 1.0)
    clip = options.get("clip")
    adv = adv if clip is None else adv.clamp(-clip, clip)
    return adv.masked_fill(~(known if adv.ndim == 1 else known[:, None]), 0.0).float()


def _by_prefix(x: Tensor, known: Tensor, node: Tensor, group: Tensor, scale: str, how: dict[str, Any]) -> Tensor:
    rows = known.nonzero()[:, 0].tolist()
    paths = [[f"prompt {group[i]}", *(f"{group[i]}/{n}" for n in _order(node[i]))] for i in rows]
    shifted = torch.full_like(x, torch.nan)
    shifted[rows] = prefix_average(x[rows], paths)
    silent = group_stats(x, group)
    adv = normalise(shifted, group, baseline="none", scale=scale, **how)
    return adv.masked_fill(silent.tied[silent.index], 0.0)


def _order(nodes: Tensor) -> list[int]:
    """The numbers of a row's segments in their order, without the 0 of padding."""
    return [int(n) for n in torch.unique_consecutive(nodes) if n]


def _by_values(x: Tensor, rollout: Rollout, value: Tensor) -> Tensor:
    node, adv = rollout.step_stats["node"], torch.zeros(value.shape, dtype=torch.float64)
    for row in range(len(x)):
        length = int((node[row] != 0).sum())
        if not length:
            continue
        _, counts = torch.unique_consecutive(node[row, :length], return_counts=True)
        begins = counts.cumsum(0) - counts
        values = torch.cat([value[row, begins].double(), torch.tensor([torch.nan], dtype=torch.float64)])
        rewards = torch.zeros(len(begins), dtype=torch.float64)
        rewards[-1] = x[row]
        adv[row, :length] = value_differences(rewards, values).nan_to_num().repeat_interleave(counts)
    return adv


def _by_nodes(rollout: Rollout, value: Tensor, group: Tensor) -> Tensor:
    last = (rollout.step_stats["node"] != 0).sum(1).clamp(min=1) - 1
    final = group_stats(value[torch.arange(len(value)), last], group)
    return float64(value) - final.mean[final.index][:, None]
