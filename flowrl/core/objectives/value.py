"""The loss of a critic: squared distance of its values from the returns, clipped around the values of the rollout."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowrl.contracts import Batch, Need, Rollout, Together, Valued, View
from flowrl.core.objectives.aggregate import weights


@dataclass(frozen=True)
class ValueObjective:
    """max((V - G)^2, (clip(V, V_old - c, V_old + c) - G)^2) / 2 of each decision, with c = clip (None: no clip).

    G: the decision's return, V_old: its value when the samples were drawn. Source: the code of PPO (arXiv:1707.06347);
    verl has the same with c = 0.5. aggregate: see aggregate.py. Metrics [r, k]: clip_frac, the clip decides and leaves
    no gradient; error, the squared distance before any clip.
    """

    clip: float | None = 0.5
    aggregate: Literal["decision_mean", "seq_mean_mean", "seq_mean_sum"] = "decision_mean"

    @property
    def view(self) -> View:
        """Values."""
        return View(states="valued")

    @property
    def together(self) -> Together:
        """Single decisions."""
        return "decision"

    @property
    def needs(self) -> frozenset[Need]:
        """The returns, of every row."""
        return frozenset({"returns", "every_row"})

    def weights(self, mask: Tensor) -> Tensor:
        """Weights [R, K]; see `contracts.Objective`."""
        return weights(mask, self.aggregate)

    def weigh(self, rollout: Rollout, adv: Tensor) -> tuple[Rollout, dict[str, Tensor]]:
        """As it is."""
        return rollout, {}

    def step_weights(self, mask: Tensor, step_stats: dict[str, Tensor]) -> None:
        """None: all decisions count."""

    def __call__(self, seen: Valued, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `contracts.Objective`. Raises ValueError without values of the rollout and returns."""
        if batch.value is None or batch.returns is None:
            raise ValueError("a critic is fitted to returns, which this advantage does not give: set advantage.credit")
        value, returns = seen.value.float(), batch.returns.where(batch.mask, 0.0)
        error = (value - returns).square()
        clipped = torch.zeros_like(error)
        loss = error
        if self.clip is not None:
            limited = torch.maximum(torch.minimum(value, batch.value + self.clip), batch.value - self.clip)
            bounded = (limited - returns).square()
            loss, clipped = torch.maximum(error, bounded), (bounded > error).float()
        metrics = {"clip_frac": clipped.detach(), "error": error.detach()}
        return (loss / 2).where(batch.mask, 0.0), {n: v.where(batch.mask, 0.0) for n, v in metrics.items()}
