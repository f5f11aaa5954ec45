"""Objectives of finished samples that are noised again: what of a loss of matching.py one look has to give.

Each is a loss with its numbers; rows are samples, columns noise levels. Divergences are mean squared differences of
velocities, as the published codes of these methods have them: no variance divides them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.contracts import Batch, Field, Need, Together, View
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.matching import mean_square, nft_loss, reward_probability


@dataclass(frozen=True)
class NoisedObjective:
    """What objectives of noised samples share: the mean over samples and levels, and a divergence from the reference.

    kl: coefficient of the mean squared difference from the reference's velocity.
    """

    kl: float = 0.0

    @property
    def view(self) -> View:
        """See `contracts.Objective`."""
        return View("noised")

    @property
    def together(self) -> Together:
        """See `contracts.Objective`."""
        return "decision"

    @property
    def needs(self) -> frozenset[Need]:
        """See `contracts.Objective`."""
        return frozenset(["reference"] if self.kl > 0 else [])

    def weights(self, mask: Tensor) -> Tensor:
        """See `contracts.Objective`."""
        return weights(mask)

    def step_weights(self, mask: Tensor, step_stats: dict[str, Tensor]) -> None:
        """See `contracts.Objective`: there are none."""

    def __call__(self, seen: Field, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `contracts.Objective`."""
        loss, metrics = self.loss(seen, batch)
        for name, coef in self._distances():
            distance = mean_square(seen.v - batch.velocities[name])
            metrics["kl" if name == "reference" else f"{name}_distance"] = distance.detach()
            loss = loss + coef * distance if coef else loss
        return loss[:, None], {name: value[:, None] for name, value in metrics.items()}

    def _distances(self) -> Iterator[tuple[Need, float]]:
        """Other weights, and the coefficient of the mean squared difference from their velocity."""
        yield from ((name, self.kl if name == "reference" else 0.0) for name in sorted(self.needs))

    def loss(self, seen: Field, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss [r], metrics [r]) of one level, but for divergences."""
        raise NotImplementedError


@dataclass(frozen=True)
class NFTObjective(NoisedObjective):
    """DiffusionNFT (arXiv:2509.16117): good samples pull the estimate of x_0, bad ones its mirror image at old weights.

    beta: how far the two estimates lie from the old one, see `matching.nft_loss`; adv_clip, adv_mode: see
    `matching.reward_probability`. Metrics beside those: old_distance, the mean squared difference from the old
    velocity.
    """

    beta: float = 1.0
    adv_clip: float = 5.0
    adv_mode: str = "all"

    @property
    def needs(self) -> frozenset[Need]:
        """See `contracts.Objective`."""
        return super().needs | {"old"}

    def loss(self, seen: Field, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `NoisedObjective`."""
        probability = reward_probability(_of_rows(batch.adv), clip=self.adv_clip, mode=self.adv_mode)
        clean, old = seen.clean(seen.v), seen.clean(batch.velocities["old"])
        return nft_loss(clean, old, seen.x0, probability, beta=self.beta, scale=self.adv_clip)


def _of_rows(adv: Tensor) -> Tensor:
    """Advantages [r] of one level, from [r] or [r, 1]."""
    return adv if adv.ndim == 1 else torch.squeeze(adv, 1)
