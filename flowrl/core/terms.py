"""Terms of an objective over other rows than those that the policy gradient is of: right answers, an expert's.

The loss of an optimizer step is share * the objective's own + the sum of coef * term, each averaged over its own rows.
Their gradients add up before the step, so that a term is looked at for itself and no mean mixes with another's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.contracts import ALONE, Looks, Objective, Progress, Ranks, Rollout
from flowrl.core.backward import StepLoss, fill_reference
from flowrl.core.filling import parts
from flowrl.core.ranks import own_rows


@dataclass(frozen=True)
class Term:
    """A term: `objective` over some rows, int64 [r], of a rollout, which `looks` looks at.

    own: whether the rollout is that of the policy gradient, so that each optimizer step takes the rows that are in its
    block; else each takes an equal share of them. adv [R]: advantages, where the objective reads any. Where its
    objective is of pairs, these are rows beside each other, the better one first.
    """

    name: str
    objective: Objective
    coef: float
    looks: Looks
    rollout: Rollout
    rows: Tensor
    own: bool = True
    adv: Tensor | None = None

    def rows_of(self, number: int, steps: int, block: Tensor) -> Tensor:
        """The rows that the optimizer step `number` of so many takes, whose own block of rows is `block`."""
        if self.own:
            return self.rows[torch.isin(self.rows, block)]
        if self.objective.together == "pair":
            return self.rows.view(-1, 2).tensor_split(steps)[number].flatten()
        return self.rows.tensor_split(steps)[number]

    def own_rows(self, rows: Tensor, ranks: Ranks) -> Tensor:
        """Those of the rows that this rank looks at."""
        return own_rows(self.rollout, rows, ranks, pairs=self.objective.together == "pair")

    def fill(self, micro_batch: int | None, progress: Progress | None = None, ranks: Ranks = ALONE) -> None:
        """Looks up the reference of these rows, if the objective reads it."""
        if "reference" in self.objective.needs:
            for part in parts(self.rows if self.rollout.own is None else self.own_rows(self.rows, ranks), micro_batch):
                fill_reference(self.looks, self.rollout, part, self.objective.view, progress)

    def loss(self, rows: Tensor) -> StepLoss:
        """The loss of these rows, times the coefficient, with a mean over them alone."""
        mask = self.rollout.mask
        loss_weights = torch.zeros_like(self.rollout.rollout_logp)
        loss_weights[rows] = self.objective.weights(mask[rows]).to(loss_weights)
        adv = torch.ones(len(loss_weights)) if self.adv is None else self.adv
        together = torch.arange(len(adv)) // 2 if self.objective.together == "pair" else None
        return StepLoss(self.rollout, adv, self.objective, self.coef * loss_weights, loss_weights, together)

    def metrics(self, loss: StepLoss) -> dict[str, float]:
        """What was measured, under the term's name."""
        return {f"{self.name}/{what}": float(value) for what, value in loss.total.items()}
