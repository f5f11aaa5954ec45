"""More samples for hard prompts: the budget of a group follows what its first samples said (DARS, arXiv:2508.13755).

A second draw of some prompts goes on with their noise, and the samples of both become one group. Groups are then of
unequal size; what is compared and averaged goes by the labels `Samples.group`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowrl.contracts import Prompt, Rollout
from flowrl.core.advantages.combined import group_stats
from flowrl.core.engine import Advantage, Draw
from flowrl.core.refill import join_rollouts


def extra_samples(accuracy: float, group: int, limit: int, *, kind: str = "equal_treatment", std: bool = False) -> int:
    """How many samples a prompt gets beyond its first `group`, of which the share `accuracy` was right; 0 to limit -
    group.

    None from an accuracy of 1/2 on; an accuracy of 0 counts as half a right sample. One sample stands for a deviation S
    = 2 a (1 - a), with std 2 sqrt(a (1 - a)), and as many are added as bring the sum over the group up to that of a
    prompt of accuracy 1/2: group / 2, with std group; hardness_weighted: times 2 (1 - a). DARS-ET and DARS-HW, section
    4, as in their code.
    """
    a = max(accuracy, 0.5 / group)
    if a >= 0.5:
        return 0
    each = 2 * math.sqrt(a * (1 - a)) if std else 2 * a * (1 - a)
    wanted = group if std else group / 2
    if kind == "hardness_weighted":
        wanted *= 2 * (1 - a)
    return min(max(math.ceil((wanted - group * each) / each), 0), limit - group)


@dataclass(frozen=True)
class Budget:
    """How many more samples prompts get; see `extra_samples`. value: gives [B], of the scored samples of a rollout,
    between 0 and 1, what an accuracy is the mean of."""

    group: int
    limit: int
    kind: str
    std: bool
    value: Callable[[dict[str, Tensor], Rollout], Tensor]

    def extra(self, draw: Draw) -> list[int]:
        """How many more samples each prompt of a draw gets; none where nothing could be scored."""
        stats = group_stats(self.value(draw.rewards, draw.rollout), draw.rollout.samples.group)
        means = zip(stats.mean.tolist(), stats.count.tolist(), strict=True)
        how = {"kind": self.kind, "std": self.std}
        return [extra_samples(mean, self.group, self.limit, **how) if number else 0 for mean, number in means]


def topped_up(
    draw: Draw,
    budget: Budget,
    prompts: Sequence[Prompt],
    more: Callable[[Sequence[Prompt], int], Draw],
    advantage: Advantage,
) -> tuple[Draw, bool]:
    """(the draw with the further samples that the budget gives its prompts, whether there are any).

    more: draws so many further samples of each of these prompts, none of them like the first ones. Its rollout is for
    `refill.JoinedPolicy` if there are any.
    """
    extra = budget.extra(draw)
    parts = {
        number: torch.tensor([i for i, e in enumerate(extra) if e == number]) for number in sorted(set(extra) - {0})
    }
    counts = {"budget/samples": float(sum(extra)), "budget/prompts": float(sum(e > 0 for e in extra))}
    if not parts:
        return replace(draw, metrics=draw.metrics | counts), False
    labels = [torch.arange(len(prompts)).repeat_interleave(budget.group)]
    draws = [draw]
    for number, at in parts.items():
        draws.append(more([prompts[i] for i in at.tolist()], number))
        labels.append(at.repeat_interleave(number))
    joined = join_rollouts([d.rollout for d in draws], [torch.arange(d.num_prompts) for d in draws])
    group = torch.cat(labels)
    rollout = replace(joined, samples=replace(joined.samples, group=group))
    rewards = {name: torch.cat([d.rewards[name] for d in draws]) for name in draw.rewards}
    whole = Draw(rollout, rewards, *advantage(rewards, rollout))
    return replace(whole, metrics=whole.metrics | counts), True
