"""Objectives of pairs of finished samples that are noised again: what of a loss of preference.py one look gives.

Both rows of a pair bear its loss, so that the mean over rows is that over pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.contracts import Batch, Field, Need, Together, View
from flowrl.core.objectives.noised import Metrics, NoisedObjective, errors, of_rows
from flowrl.core.objectives.preference import beta_of_epsilon, gap_factor, implicit_rewards, pair_loss, rpo_loss


@dataclass(frozen=True)
class FlowDPOObjective(NoisedObjective):
    """Flow-DPO (arXiv:2501.13918): of two samples at one noise and level, the better one's error is to fall further.

    beta: see `preference.implicit_rewards`; epsilon: the errors weigh as those of predicted noise, which is
    Diffusion-DPO (arXiv:2311.12908). against: whose errors the policy's are compared with, the reference's or the older
    weights'. own_noise: each sample is noised by the noise that it came from, and gap: beta is multiplied by
    `preference.gap_factor` of gap times the difference of the pair's advantages, both as in PNAPO (arXiv:2605.09433).
    Metrics beside those of `preference.pair_loss`, of the better sample: winner_error, and winner_rise, by
    which it is above the error of those other weights.
    """

    beta: float = 100.0
    epsilon: bool = False
    against: Need = "reference"
    own_noise: bool = False
    gap: float | None = None

    @property
    def view(self) -> View:
        """See `contracts.Objective`."""
        return View("noised", share_noise=not self.own_noise, own_noise=self.own_noise)

    @property
    def together(self) -> Together:
        """See `contracts.Objective`."""
        return "pair"

    @property
    def needs(self) -> frozenset[Need]:
        """See `contracts.Objective`."""
        return super().needs | frozenset[Need]([self.against])

    def loss(self, seen: Field, batch: Batch) -> tuple[Tensor, Metrics]:
        """See `NoisedObjective`: each row of a pair bears the loss of the pair."""
        error, others = errors(seen, batch)
        beta = beta_of_epsilon(self.beta, seen.signal, seen.unit) if self.epsilon else self.beta
        if self.gap is not None:
            adv = of_rows(batch.adv).unflatten(0, (-1, 2))
            beta = beta * gap_factor(self.gap * (adv[:, 0] - adv[:, 1])).to(error).repeat_interleave(2)
        implicit = implicit_rewards(error, others[self.against], beta)
        loss, metrics = pair_loss(implicit.unflatten(0, (-1, 2)))
        metrics["winner_error"] = error.detach()[0::2]
        metrics["winner_rise"] = (error - others[self.against]).detach()[0::2]
        return loss.repeat_interleave(2), {name: value.repeat_interleave(2) for name, value in metrics.items()}


@dataclass(frozen=True)
class RPOObjective(NoisedObjective):
    """Reward preference optimization (arXiv:2407.12164): given samples against drawn ones, and imitation of the given.

    Of a pair the sample that was given comes first: a photograph of the subject, against a picture that the model drew.
    beta, sft: see `preference.rpo_loss`; epsilon: errors weigh as those of predicted noise. The probability that the
    given one is preferred is the sigmoid of the difference of their advantages, which are rewards less the group's mean
    where nothing scales them. The published code draws a label by it; its loss is linear in the label, and this is its
    mean. The two have noises of their own, as there. Metrics beside those of `preference.pair_loss`: label, similarity.
    """

    beta: float = 1.0
    sft: float = 1.0
    epsilon: bool = False

    @property
    def view(self) -> View:
        """See `contracts.Objective`."""
        return View("noised")

    @property
    def together(self) -> Together:
        """See `contracts.Objective`."""
        return "given"

    @property
    def needs(self) -> frozenset[Need]:
        """See `contracts.Objective`."""
        return super().needs | frozenset[Need](["reference"])

    def loss(self, seen: Field, batch: Batch) -> tuple[Tensor, Metrics]:
        """See `NoisedObjective`: each row of a pair bears the loss of the pair."""
        error, others = errors(seen, batch)
        factor = beta_of_epsilon(1.0, seen.signal, seen.unit) if self.epsilon else 1.0
        adv = of_rows(batch.adv).unflatten(0, (-1, 2))
        label = torch.sigmoid(adv[:, 0] - adv[:, 1]).to(error.dtype)
        pairs, reference = ((factor * e).unflatten(0, (-1, 2)) for e in (error, others["reference"]))
        loss, metrics = rpo_loss(pairs, reference, label, beta=self.beta, sft=self.sft)
        metrics["label"] = label
        return loss.repeat_interleave(2), {name: value.repeat_interleave(2) for name, value in metrics.items()}


PAIRED: dict[str, type[NoisedObjective]] = {"flow_dpo": FlowDPOObjective, "rpo": RPOObjective}
