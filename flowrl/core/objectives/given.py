"""A loss of one's own: a function of what is seen and of its data, and what the loop wants to know beside it.

    def sigmoid_gate(seen, batch, *, slope=4.0):
        gain = torch.sigmoid(slope * (seen.logp - batch.rollout_logp))
        return -gain * batch.adv

What is not said of the function or class by attributes is as for a loss of single decisions: `view` (contracts.View),
`together` ("row" where a decision's loss reads others of its row), `needs` ({"reference"}), and methods `weights`,
`step_weights` and `weigh` of a class.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from flowrl.contracts import Batch, LogProbs, Need, Rollout, Together, View
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.divergence import k3

Loss = Callable[[LogProbs, Batch], Any]


@dataclass(frozen=True)
class GivenObjective:
    """`contracts.Objective` of a loss (seen, batch) -> [r, k], or (that, metrics). Its batch.adv is [r, k] always.

    Raises ValueError for a loss of another shape.
    """

    loss: Loss

    @property
    def view(self) -> View:
        """See `contracts.Objective`."""
        return self._said("view", View())

    @property
    def together(self) -> Together:
        """See `contracts.Objective`."""
        return self._said("together", "decision")

    @property
    def needs(self) -> frozenset[Need]:
        """See `contracts.Objective`."""
        return frozenset(self._said("needs", ()))

    def weigh(self, rollout: Rollout, adv: Tensor) -> tuple[Rollout, dict[str, Tensor]]:
        """See `contracts.Objective`: as it is, unless a class says otherwise."""
        own = self._said("weigh", None)
        return (rollout, {}) if own is None else own(rollout, adv)

    def weights(self, mask: Tensor) -> Tensor:
        """Weights [R, K]; see `contracts.Objective`: the mean over trained decisions unless the loss says otherwise."""
        own = self._said("weights", None)
        return weights(mask) if own is None else own(mask)

    def step_weights(self, mask: Tensor, step_stats: dict[str, Tensor]) -> Tensor | None:
        """Factors [R, K], or None; see `contracts.Objective`."""
        own = self._said("step_weights", None)
        return None if own is None else own(mask, step_stats)

    def __call__(self, seen: LogProbs, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `contracts.Objective`. Decisions that are not trained have the loss 0, whatever it gives for them."""
        spread = (batch.adv[:, None] if batch.adv.ndim == 1 else batch.adv).expand_as(seen.logp)
        returned = self.loss(seen, replace(batch, adv=spread))
        loss, metrics = returned if isinstance(returned, tuple) else (returned, {})
        if not isinstance(loss, Tensor) or loss.shape != seen.logp.shape:
            got = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise ValueError(f"the loss is {got}; wanted is a number a decision, [r, k], here {list(seen.logp.shape)}")
        moved = (seen.logp.detach() - batch.rollout_logp).where(batch.mask, 0.0)
        told = {name: value.detach() for name, value in metrics.items()} | {"log_ratio": moved, "approx_kl": k3(moved)}
        told["abs_log_ratio_max"] = moved.abs().amax() if moved.numel() else moved.new_zeros(())
        return loss.where(batch.mask, 0.0), told

    def _said(self, name: str, otherwise: Any) -> Any:
        """What the loss, or the function behind its arguments, says of itself."""
        return getattr(self.loss, name, getattr(getattr(self.loss, "function", None), name, otherwise))
