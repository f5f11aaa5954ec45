"""The clipped objective with a divergence from the reference: GRPO and its relatives as one combination of parts."""

from dataclasses import dataclass

from torch import Tensor

from flowrl.contracts import Score
from flowrl.objectives.clipped import clipped_loss
from flowrl.objectives.divergence import penalty


@dataclass(frozen=True)
class ClippedObjective:
    """Clipped policy gradient plus `kl` times a divergence from the reference policy, per decision.

    clip_low, clip_high, dual: see `clipped_loss`. kl_kind: "exact" (of the decision's own distribution), or an
    estimate from log-probs, k1, k2, k3 or abs. aggregate: see `aggregate.weights`.
    Sources: GRPO (arXiv:2402.03300, eq. 3), Flow-GRPO (arXiv:2505.05470, eq. 5).
    """

    clip_low: float
    clip_high: float
    dual: float | None = None
    kl: float = 0.0
    kl_kind: str = "exact"
    aggregate: str = "decision_mean"

    @property
    def needs_reference(self) -> bool:
        """Whether the reference's log-probs are to be filled in."""
        return self.kl > 0

    @property
    def exact_kl(self) -> bool:
        """Whether the policy is to compute the exact divergence."""
        return self.kl > 0 and self.kl_kind == "exact"

    def __call__(
        self, score: Score, *, behave: Tensor, adv: Tensor, mask: Tensor, reference: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `contracts.Objective`. Adds the metric `kl` where there is a reference."""
        loss, metrics = clipped_loss(
            score.logp, behave, adv, clip_low=self.clip_low, clip_high=self.clip_high, dual=self.dual, mask=mask
        )
        if self.kl > 0:
            divergence = penalty(self.kl_kind, score.logp, reference, kl=score.kl, mask=mask)
            loss = loss + self.kl * divergence
            metrics["kl"] = divergence.detach()
        return loss, metrics
