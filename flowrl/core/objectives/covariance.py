"""Decisions whose log-prob and advantage vary together: what moves them is what uses up the policy's entropy.

Clip-Cov and KL-Cov (arXiv:2505.22617) pick a small share of them, by (A - mean A) (logp - mean logp) over all of them:
the first gives them no gradient, the second a pull to the policy that they were drawn with. In the published code the
statistic is that of one micro-batch under the weights of now; here of the whole rollout under the weights before its
updates, so that it does not depend on how an update is cut.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("clip", "kl")


def covariance(logp: Tensor, adv: Tensor, mask: Tensor) -> Tensor:
    """(A - mean A) (logp - mean logp) of each decision, [R, K], 0 where masked; adv [R] or [R, K]. No gradient."""
    valid = mask.bool()
    a = (adv[:, None] if adv.ndim == 1 else adv).detach().to(logp.dtype).expand_as(logp)
    number = valid.sum().clamp(min=1)
    parts = [x - x.where(valid, 0.0).sum() / number for x in (a, logp.detach())]
    return (parts[0] * parts[1]).where(valid, 0.0)


@dataclass(frozen=True)
class Covariance:
    """Which decisions are picked, and what becomes of them; see above.

    kind: clip, share of all decisions at most, drawn among those whose covariance is above low and below high (verl's
    defaults: 2e-4, 1 and 5), have no policy gradient; kl, the share of the largest covariance pays coef times |logp -
    old| (verl's default 0.1; the paper's coefficient is 1). At least one is picked.

    Raises ValueError for an unknown kind.
    """

    kind: str
    share: float = 2e-4
    low: float = 1.0
    high: float = 5.0
    coef: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"covariance {self.kind!r}: choose one of {', '.join(KINDS)}")

    def picked(self, cov: Tensor, mask: Tensor, clipped: Tensor | None = None) -> Tensor:
        """The decisions that are picked, bool [R, K], of covariances and mask [R, K]. clipped bool [R, K]: those that a
        clip already leaves without gradient, which are no candidates of `clip`.

        Of more candidates than the share, a draw decides that depends on their covariances alone.
        """
        valid = mask.bool()
        number = max(1, int(self.share * int(valid.sum())))
        if self.kind == "kl":
            score = cov.masked_fill(~valid, -torch.inf).flatten()
            best = score.topk(min(number, int(valid.sum()))).indices
            return torch.zeros_like(score, dtype=torch.bool).index_fill(0, best, True).view_as(valid)
        candidates = valid & (cov > self.low) & (cov < self.high)
        if clipped is not None:
            candidates = candidates & ~clipped
        places = candidates.flatten().nonzero()[:, 0]
        if len(places) > number:
            content = cov.flatten()[places].float().cpu().numpy().tobytes()
            seed = int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "big")
            order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))
            places = places[order[:number].to(places.device)]
        return torch.zeros_like(candidates.flatten()).index_fill(0, places, True).view_as(valid)
