"""Objectives of finished samples that are noised again: what of a loss of matching.py one look gives. Pairs: paired.py.

Each is a loss with its numbers; rows are samples, columns noise levels. Divergences are mean squared differences of
velocities, as the published codes of these methods have them: no variance divides them.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowrl.contracts import Batch, Field, Need, Rollout, Together, View
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.clipped import clipped_loss
from flowrl.core.objectives.matching import (
    adaptive_divergence,
    awm_log_prob,
    crd_loss,
    dgpo_loss,
    implicit_reward,
    mean_square,
    moved_away,
    nft_loss,
    reward_probability,
    reward_weight,
)

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class NoisedObjective:
    """What objectives of noised samples share: the mean over samples and levels, and a divergence from the reference.

    kl: coefficient of the mean squared difference from the reference's velocity. Metrics [r, 1]: kl where there is a
    reference; old_distance, the mean squared difference from the older velocity, where there is one.
    """

    reads: ClassVar[frozenset[Need]] = frozenset()  # what the loss needs, beside the divergence

    kl: float = 0.0

    @property
    def view(self) -> View:
        """See `contracts.Objective`."""
        return View("noised", share_noise=self.together != "decision")

    @property
    def together(self) -> Together:
        """See `contracts.Objective`."""
        return "decision"

    @property
    def needs(self) -> frozenset[Need]:
        """See `contracts.Objective`."""
        return self.reads | frozenset[Need](["reference"] if self.kl > 0 else [])

    def weigh(self, rollout: Rollout, adv: Tensor) -> tuple[Rollout, dict[str, Tensor]]:
        """See `contracts.Objective`: as it is."""
        return rollout, {}

    def weights(self, mask: Tensor) -> Tensor:
        """Weights [R, K]; see `contracts.Objective`."""
        return weights(mask)

    def step_weights(self, mask: Tensor, step_stats: dict[str, Tensor]) -> None:
        """See `contracts.Objective`: no factors [R, K]."""

    def __call__(self, seen: Field, batch: Batch) -> tuple[Tensor, Metrics]:
        """See `contracts.Objective`."""
        loss, metrics = self.loss(seen, batch)
        distances = {name: _square(seen, seen.v - v) for name, v in batch.velocities.items()}
        if self.kl > 0:
            loss = loss + self.kl * self.kl_factor(batch) * distances["reference"]
        for name, distance in distances.items():
            metrics["kl" if name == "reference" else f"{name}_distance"] = distance.detach()
        return loss[:, None], {name: value[:, None] for name, value in metrics.items()}

    def kl_factor(self, batch: Batch) -> Tensor | float:
        """What multiplies the divergence of each row, [r]."""
        return 1.0

    def loss(self, seen: Field, batch: Batch) -> tuple[Tensor, Metrics]:
        """(loss [r], metrics [r]) of one level, but for the divergence from the reference."""
        raise NotImplementedError


@dataclass(frozen=True)
class NFTObjective(NoisedObjective):
    """DiffusionNFT (arXiv:2509.16117): good samples pull the estimate of x_0, bad ones its mirror image at old weights.

    beta: how far the two estimates lie from the old one, see `matching.nft_loss`; adv_clip, adv_mode: see
    `matching.reward_probability`.
    """

    reads: ClassVar[frozenset[Need]] = frozenset({"old", "every_row"})

    beta: float = 1.0
    adv_clip: float = 5.0
    adv_mode: str = "all"

    def loss(self, seen: Field, batch: Batch) -> tuple[Tensor, Metrics]:
        """(loss [r], metrics [r]); see `NoisedObjective`."""
        probability = reward_probability(of_rows(batch.adv), clip=self.adv_clip, mode=self.adv_mode)
        clean, old = seen.clean(seen.v), seen.clean(batch.velocities["old"])
        return nft_loss(clean, old, seen.x0, probability, beta=self.beta, scale=self.adv_clip)


@dataclass(frozen=True)
class AWMObjective(NoisedObjective):
    """Advantage-weighted matching (arXiv:2509.25050): a clipped policy gradient whose log-probs are errors.

    weighting, power: see `matching.awm_log_prob`. clip: of the ratio to the older weights, null for the ratio to the
    weights themselves, which is 1. pull: coefficient of the mean squared difference from the older velocity.
    Advantages within adv_clip are scaled to adv_max.
    Raises ValueError without a clip and without a pull: then the loss has no lower bound, and training collapses.
    """

    reads: ClassVar[frozenset[Need]] = frozenset({"old"})

    weighting: str = "ghuber"
    power: float = 0.25
    clip: float | None = None
    pull: float = 1.0
    adv_clip: float = 5.0
    adv_max: float = 1.0

    def __post_init__(self) -> None:
        if self.clip is None and self.pull == 0:
            raise ValueError("clip=null and pull=0 leave the loss without a bound: give one of the two")

    @property
    def needs(self) -> frozenset[Need]:
        """See `contracts.Objective`: a pull acts on every row."""
        return super().needs | frozenset[Need](["every_row"] if self.pull else [])

    def loss(self, seen: Field, batch: Batch) -> tuple[Tensor, Metrics]:
        """(loss [r], metrics [r]); see `NoisedObjective`."""
        old_v, level = batch.velocities["old"], torch.tensor(seen.level)
        logp, old = (
            awm_log_prob(_square(seen, v - seen.target), level, weighting=self.weighting, power=self.power)
            for v in (seen.v, old_v)
        )
        old = logp.detach() if self.clip is None else old
        limit = math.inf if self.clip is None else self.clip
        adv = of_rows(batch.adv).clamp(-self.adv_clip, self.adv_clip) * self.adv_max / self.adv_clip
        loss, metrics = clipped_loss(logp[:, None], old[:, None], adv, clip_low=min(limit, 1.0), clip_high=limit)
        pull = self.pull * _square(seen, seen.v - old_v) if self.pull else 0.0
        shown = {name: metrics[name][:, 0] for name in ("ratio", "clip_frac")}
        return loss[:, 0].to(seen.v.dtype) + pull, shown


@dataclass(frozen=True)
class DGPOObjective(NoisedObjective):
    """Direct group preference (arXiv:2510.08425): DPO between the better and the worse part of each group.

    beta, size (samples of a group): see `matching.dgpo_loss`. clip: of the ratio to the older weights, null for none.
    against: whose error the policy's is compared with, the reference's or the older weights'.
    """

    beta: float = 100.0
    clip: float | None = None
    against: Need = "reference"
    size: int = 1

    @property
    def together(self) -> Together:
        """See `contracts.Objective`."""
        return "group"

    @property
    def needs(self) -> frozenset[Need]:
        """See `contracts.Objective`."""
        return super().needs | frozenset[Need]([self.against, *(["old"] if self.clip is not None else [])])

    def loss(self, seen: Field, batch: Batch) -> tuple[Tensor, Metrics]:
        """(loss [r], metrics [r]); see `NoisedObjective`."""
        adv = of_rows(batch.adv)
        error, others = errors(seen, batch)
        held, told = None, {}
        if self.clip is not None:
            held, ratio = moved_away(error, others["old"], adv, clip=self.clip)
            told = {"ratio": ratio, "clip_frac": held.to(ratio.dtype)}
        loss, metrics = dgpo_loss(
            error, others[self.against], adv, _together(batch), beta=self.beta, size=self.size, held=held
        )
        return loss, metrics | told


@dataclass(frozen=True)
class CRDObjective(NoisedObjective):
    """Centred reward distillation (arXiv:2603.14128): the implicit reward of a group's rows is to be their reward.

    beta, temperature, match: see `matching.crd_loss`; adaptive: see `matching.implicit_reward`; adv_clip: see
    `matching.reward_probability`. adaptive_kl: the divergence counts less for worse rows, down to 1e-4.
    """

    reads: ClassVar[frozenset[Need]] = frozenset({"old", "every_row"})

    beta: float = 1.0
    temperature: float = -1.0
    match: str = "mse"
    adaptive: bool = True
    adv_clip: float = 5.0
    adaptive_kl: bool = False

    @property
    def together(self) -> Together:
        """See `contracts.Objective`."""
        return "group"

    def kl_factor(self, batch: Batch) -> Tensor | float:
        """See `NoisedObjective`."""
        if not self.adaptive_kl:
            return 1.0
        return adaptive_divergence(reward_probability(of_rows(batch.adv), clip=self.adv_clip), self.kl)

    def loss(self, seen: Field, batch: Batch) -> tuple[Tensor, Metrics]:
        """(loss [r], metrics [r]); see `NoisedObjective`."""
        probability = reward_probability(of_rows(batch.adv), clip=self.adv_clip)
        implicit = implicit_reward(seen.v - seen.target, batch.velocities["old"] - seen.target, adaptive=self.adaptive)
        if seen.share is not None and not self.adaptive:  # in the ratio of two means it cancels, as in NFT's loss
            implicit = implicit / seen.share
        loss, metrics = crd_loss(
            implicit,
            probability.to(implicit.dtype),
            _together(batch),
            beta=self.beta,
            temperature=self.temperature,
            match=self.match,
        )
        return loss * self.adv_clip / self.beta, metrics


@dataclass(frozen=True)
class FlowRWRObjective(NoisedObjective):
    """Reward-weighted regression (Flow-RWR of arXiv:2501.13918): the error times exp(advantage / temperature)."""

    reads: ClassVar[frozenset[Need]] = frozenset({"every_row"})

    temperature: float = 1.0

    def loss(self, seen: Field, batch: Batch) -> tuple[Tensor, Metrics]:
        """(loss [r], metrics [r]); see `NoisedObjective`."""
        weight = reward_weight(of_rows(batch.adv), self.temperature)
        return weight * _square(seen, seen.v - seen.target), {"reward_weight": weight}


@dataclass(frozen=True)
class SFTObjective(NoisedObjective):
    """Supervised finetuning: the error of the velocity, of samples whose score is above `least`.

    weighted: times the score, which with rewards as scores is GORS (T2I-CompBench, arXiv:2307.06350, its code).
    """

    least: float = 0.0
    weighted: bool = True

    def loss(self, seen: Field, batch: Batch) -> tuple[Tensor, Metrics]:
        """See `NoisedObjective`."""
        error, score = _square(seen, seen.v - seen.target), of_rows(batch.adv)
        weight = score if self.weighted else torch.ones_like(score)
        return weight.where(score > self.least, 0.0) * error, {"error": error.detach()}


def errors(seen: Field, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared errors [r] of the velocity under the policy, with gradient, and under the other weights."""
    others = {name: _square(seen, v - seen.target) for name, v in batch.velocities.items()}
    return _square(seen, seen.v - seen.target), others


def _square(seen: Field, gap: Tensor) -> Tensor:
    """Mean of the squares of each row, [r], over the elements that are at the level of the look."""
    mean = mean_square(gap)
    return mean if seen.share is None else mean / seen.share


def of_rows(adv: Tensor) -> Tensor:
    """Advantages [r] of one level, from [r] or [r, 1]."""
    return adv if adv.ndim == 1 else adv.squeeze(1)


def _together(batch: Batch) -> Tensor:
    assert batch.together is not None, "the loop says which rows belong together"
    return batch.together


NOISED: dict[str, type[NoisedObjective]] = {
    "nft": NFTObjective,
    "awm": AWMObjective,
    "dgpo": DGPOObjective,
    "crd": CRDObjective,
    "flow_rwr": FlowRWRObjective,
    "sft": SFTObjective,
}
