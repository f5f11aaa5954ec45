"""The clipped objective with a divergence from the reference: GRPO and its relatives as one combination of parts."""

from dataclasses import dataclass

from torch import Tensor

from flowrl.contracts import Score
from flowrl.objectives.aggregate import weights
from flowrl.objectives.clipped import clipped_loss
from flowrl.objectives.divergence import penalty


@dataclass(frozen=True)
class ClippedObjective:
    """Clipped policy gradient plus `kl` times a divergence from the reference policy, per decision.

    clip_low, clip_high, dual, level, log_ratio_limit: see `clipped_loss`. kl_kind: "exact" (of the decision's own
    distribution), or an estimate from log-probs, k1, k2, k3 or abs. aggregate: see `aggregate.weights`; its constant is
    rows * length, where length None is the number of decisions that a row has room for.
    Sources: GRPO (arXiv:2402.03300, eq. 3), Flow-GRPO (arXiv:2505.05470, eq. 5), GSPO (arXiv:2507.18071, eq. 5),
    Dr. GRPO (arXiv:2503.20783), DAPO (arXiv:2503.14476).
    """

    clip_low: float
    clip_high: float
    dual: float | None = None
    kl: float = 0.0
    kl_kind: str = "exact"
    aggregate: str = "decision_mean"
    level: str = "token"
    log_ratio_limit: float | None = None
    length: int | None = None

    @property
    def whole_rows(self) -> bool:
        """Whether a decision's ratio is that of its row."""
        return self.level != "token"

    @property
    def needs_reference(self) -> bool:
        """Whether the reference's log-probs are to be filled in."""
        return self.kl > 0

    @property
    def exact_kl(self) -> bool:
        """Whether the policy is to compute the exact divergence."""
        return self.kl > 0 and self.kl_kind == "exact"

    def weights(self, mask: Tensor) -> Tensor:
        """See `contracts.Objective`."""
        room = len(mask) * (mask.shape[1] if self.length is None else self.length)
        return weights(mask, self.aggregate, constant=float(room) if self.aggregate == "constant" else None)

    def __call__(
        self, score: Score, *, behave: Tensor, adv: Tensor, mask: Tensor, reference: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `contracts.Objective`. Adds the metric `kl` where there is a reference."""
        loss, metrics = clipped_loss(
            score.logp,
            behave,
            adv,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual=self.dual,
            level=self.level,
            mask=mask,
            log_ratio_limit=self.log_ratio_limit,
        )
        if self.kl > 0:
            divergence = penalty(self.kl_kind, score.logp, reference, kl=score.kl, mask=mask)
            loss = loss + self.kl * divergence
            metrics["kl"] = divergence.detach()
        return loss, metrics
