"""What is added to a rollout before it is trained: log-probs of others than who drew it, values, and weights."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flowrl.contracts import ALONE, Looks, Objective, Progress, Ranks, Rollout, View
from flowrl.core.backward import fill_old, fill_reference, fill_shown
from flowrl.core.objectives.mismatch import SHOWN, mismatch
from flowrl.core.ranks import own_rows
from flowrl.core.values import Critic


def parts(rows: Tensor, micro_batch: int | None) -> Sequence[Tensor]:
    """The rows, micro_batch of them at once (None: all)."""
    return rows.split(micro_batch or max(len(rows), 1))


def filling(
    policy: Looks, critic: Critic | None, reference: bool, micro_batch: int | None, progress: Progress | None
) -> Callable[[Rollout], None] | None:
    """What adds log-probs of the reference, or a critic's values, to a rollout before it has advantages."""
    if critic is None and not reference:
        return None

    def fill(rollout: Rollout) -> None:
        if reference:
            for part in parts(rollout.mask.any(1).nonzero()[:, 0], micro_batch):
                fill_reference(policy, rollout, part, View(), progress)
        if critic is not None:
            critic.fill(critic.looks, rollout, micro_batch, progress)

    return fill


def weighed(
    policy: Looks,
    rollout: Rollout,
    adv: Tensor,
    objective: Objective,
    micro_batch: int | None,
    progress: Progress | None,
    ranks: Ranks = ALONE,
) -> tuple[Rollout, dict[str, float]]:
    """The rollout as the objective trains it, and metrics of that and of how far who sampled is from who trains."""
    metrics: dict[str, Tensor] = {}
    if "old_logp" in objective.needs:
        rollout = replace(rollout, old_logp=torch.zeros_like(rollout.rollout_logp))
        for part in parts(own_rows(rollout, rollout.mask.any(1).nonzero()[:, 0], ranks), micro_batch):
            fill_old(policy, rollout, part, progress)
        assert rollout.old_logp is not None
        ranks.total([rollout.old_logp])  # 0 in rows of others
        found = mismatch(rollout.old_logp, rollout.rollout_logp, rollout.mask)
        metrics = {f"mismatch/{name}": found[name] for name in SHOWN}
    if "shown" in objective.needs:
        rollout = replace(rollout, shown=torch.zeros_like(rollout.rollout_logp))
        for part in parts(own_rows(rollout, rollout.mask.any(1).nonzero()[:, 0], ranks), micro_batch):
            fill_shown(policy, rollout, part, progress)
        assert rollout.shown is not None
        ranks.total([rollout.shown])
    rollout, more = objective.weigh(rollout, adv)
    return rollout, {name: float(value) for name, value in (metrics | more).items()}
