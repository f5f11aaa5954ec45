"""A critic: what it expects of a rollout before its advantages are known, and how well it did.

It stands between engine and update. It looks at rollouts as a policy does, and learns by the same update with a loss
and a learner of its own (core/update.py).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from flowrl.contracts import Looks, Objective, Progress, Rollout, Valued, View
from flowrl.core.learning.learner import Learner


class Values(Looks, Protocol):
    """A model that gives `Valued` of the rows of a rollout. modules: by name, those that are trained."""

    modules: dict[str, nn.Module]


@dataclass
class Critic:
    """Values of decisions, and how they learn: `epochs` passes of `updates` steps over each rollout.

    learner: of its parameters. warmup: so many iterations fit the critic alone, to the
    returns of a policy that stands still (VC-PPO, arXiv:2503.01491, section 3.2).
    """

    looks: Values
    learner: Learner
    objective: Objective
    epochs: int = 1
    updates: int = 1
    warmup: int = 0

    def fill(self, looks: Looks, rollout: Rollout, micro_batch: int | None, progress: Progress | None = None) -> None:
        """Fills in `rollout.value` [R, K], 0 where masked. looks: the critic's own, or a joined one over it."""
        value = torch.zeros_like(rollout.rollout_logp)

        def visit(seen: Valued) -> None:
            value[seen.rows[:, None], seen.columns[None]] = seen.value.detach().to(value)

        rows = rollout.mask.any(1).nonzero()[:, 0]
        with torch.no_grad():
            for part in rows.split(micro_batch or max(len(rows), 1)):
                looks.look(rollout, part, View(states="valued"), visit, progress=progress)
        rollout.value = value.where(rollout.mask, 0.0)


def fitted_decisions(rollout: Rollout) -> Tensor:
    """The decisions that a critic is fitted to, bool [R, K]: those of rows that could be scored."""
    if rollout.returns is None:
        raise ValueError("the advantage gives no returns to fit a critic to: set advantage.credit to gae or two_level")
    return rollout.mask & ~rollout.returns.isnan()


def value_metrics(rollout: Rollout) -> dict[str, float]:
    """Of the critic before it is fitted to a rollout: mean of its values and of the returns, and explained variance.

    Explained variance is 1 - Var(G - V) / Var(G) over decisions: 1 for a critic that knows, 0 for a constant, NaN where
    all returns are the same.
    """
    fitted = fitted_decisions(rollout)
    if rollout.value is None or rollout.returns is None or not fitted.any():
        return {}
    value, returns = rollout.value[fitted].double(), rollout.returns[fitted].double()
    spread = returns.var(correction=0)
    explained = float(1 - (returns - value).var(correction=0) / spread) if spread > 0 else float("nan")
    return {
        "value/mean": float(value.mean()),
        "value/return": float(returns.mean()),
        "value/explained_variance": explained,
    }
