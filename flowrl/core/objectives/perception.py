"""That what a policy says depends on what it sees: a divergence between two views of the same pictures, to be large.

The implicit perception loss of PAPO (arXiv:2507.06448, section 3): with lp the log-prob of a token beside the pictures
of its prompt and lp' that beside masked ones, which is taken once, before the first update, and has no gradient,

    loss = policy gradient - coef * k3(lp, lp') + entropy * (-lp) + entropy * (-lp')

k3 = exp(lp' - lp) - (lp' - lp) - 1. It has no bound and is hacked by saying anything, which the entropies hold back
(its double entropy loss). The last term has no gradient then, as in the published code, and is a metric here.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from flowrl.core.objectives.divergence import penalty

Metrics = dict[str, Tensor]
LOG_RATIO_LIMIT, VALUE_LIMIT = 20.0, 10.0  # of k3 in the published code; beyond them it has no gradient


@dataclass(frozen=True)
class Perception:
    """coef: of the divergence from what is said beside the other pictures, by kl_kind; entropy: of -log p of each
    token, an estimate of the entropy."""

    coef: float = 0.01
    kl_kind: Literal["k1", "k2", "k3", "abs"] = "k3"
    entropy: float = 0.0

    def loss(self, logp: Tensor, shown: Tensor | None, mask: Tensor) -> tuple[Tensor, Metrics]:
        """What is added to each decision's loss, [r, k], and the metrics perception, the divergence, and
        perception_entropy, -log p beside the other pictures. logp, shown [r, k]: see above; NaN in rows without other
        pictures, whose loss gets the entropy alone.

        Raises ValueError where `shown` is not given.
        """
        if shown is None:
            raise ValueError("a second look at the rows is compared with: Rollout.shown is not filled in")
        there = mask.bool() & ~shown.isnan()
        other = shown.nan_to_num()
        divergence = penalty(
            self.kl_kind, logp, other, mask=there, log_ratio_limit=LOG_RATIO_LIMIT, value_limit=VALUE_LIMIT
        )
        loss = -self.coef * divergence - self.entropy * logp.where(mask.bool(), 0.0)
        metrics = {"perception": divergence.detach()}
        if self.entropy > 0:
            metrics["perception_entropy"] = -shown.where(there, 0.0)
        return loss, metrics
