"""Corrections for decisions that another policy drew than the one that trains: the same weights in another precision or
engine, or older ones.

Three log-probs of a decision: rollout, of who sampled; old, of the weights that train, before an update; logp, of those
of now. The clip compares logp with old; what is corrected here is w = old / rollout, worked out once for an update and
without gradient. Each correction is a weight, which leaves the divisor of the loss as it is, or a mask, which takes
decisions out of it:

    kind      is a      w is of       bounded is    outside the bounds      bounds      source
    none      -                                                                         old alone is the clip's
    tis       weight    a token       a token       limited to them         up to 2     TIS (Yao et al. 2025), verl
    seq_tis   weight    a row, sum    a row, sum    limited to them         up to 2     the same of rows, verl
    icepop    weight    a token       a token       0                       0.5 to 5    IcePop (arXiv:2510.18855)
    seq_mis   weight    a row, sum    a row, sum    0                       up to 3     TRL's sequence_mask
    seq_mask  weight    a token       a row, mean   0 in the whole row      0.5 to 5    OpenRLHF's seq-mask-tis
    mis       mask      a token       a token       leaves the loss         1/2 to 2    MIS (Liu et al. 2025), slime

A row's sum is the product of its ratios, its mean their geometric mean. Rejections and the veto are further masks.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flowrl.core.objectives.clipped import difference, exponent_of
from flowrl.core.objectives.divergence import k3

LIMIT = 20.0  # of a log-ratio, before its exponential is taken, as in the published code
LEVELS = ("token", "seq_sum", "seq_mean")
REJECT_LEVELS = (*LEVELS, "seq_max")
ESTIMATES = ("k1", "k2", "k3")


class Kind(NamedTuple):
    """What a kind of correction does by itself. level: of w, bounded: of what the bounds are about."""

    level: str
    bounded: str
    outside: str  # limit, zero or mask
    low: float | None
    high: float | None


KINDS = {
    "none": Kind("token", "token", "limit", None, None),
    "tis": Kind("token", "token", "limit", None, 2.0),
    "seq_tis": Kind("seq_sum", "seq_sum", "limit", None, 2.0),
    "icepop": Kind("token", "token", "zero", 0.5, 5.0),
    "seq_mis": Kind("seq_sum", "seq_sum", "zero", None, 3.0),
    "seq_mask": Kind("token", "seq_mean", "zero", 0.5, 5.0),
    "mis": Kind("token", "token", "mask", 0.5, 2.0),
}


class Corrected(NamedTuple):
    """weight float [R, K], 0 where not valid; mask bool [R, K], what stays; metrics: 0-d, by name."""

    weight: Tensor
    mask: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class Rejection:
    """Decisions, or rows, that leave the loss since old and rollout are too far apart.

    by: with x = log(old / rollout), k1 compares exp(x) with low and high (low None: 1 / high); verl's bounds are those
    of rollout / old. k2, x^2 / 2, and k3, exp(x) - 1 - x, have the bound high alone. level: of a decision, or of the
    sum, mean or largest over its row. keeps: the decisions get the weight 0, and the divisor of the loss stays (AReaL);
    otherwise they leave it (verl).

    Raises ValueError for an unknown name, a low that no estimate but k1 has, or seq_max of k1, which has two ends.
    """

    by: str
    level: str
    high: float
    low: float | None = None
    keeps: bool = False

    def __post_init__(self) -> None:
        if self.by not in ESTIMATES or self.level not in REJECT_LEVELS:
            choices = f"{', '.join(ESTIMATES)} and {', '.join(REJECT_LEVELS)}"
            raise ValueError(f"rejection by {self.by!r} at level {self.level!r}: accepted are {choices}")
        if self.by == "k1" and self.level == "seq_max":
            raise ValueError("rejection by k1 has two bounds, and seq_max one: take k2 or k3")
        if self.low is not None and self.by != "k1":
            raise ValueError(f"rejection by {self.by} is never negative: low={self.low} says nothing")

    def kept(self, log_ratio: Tensor, valid: Tensor) -> Tensor:
        """What stays, bool [R, K], of log(old / rollout) [R, K], 0 where not valid."""
        x = log_ratio
        value = x if self.by == "k1" else (x.square() / 2 if self.by == "k2" else k3(x)).where(valid, 0.0)
        if self.level == "seq_max":
            value = value.amax(1, keepdim=True).expand_as(x)
        else:
            value = exponent_of(value, valid, self.level)
        if self.by != "k1":
            return value <= self.high
        high, low = (torch.tensor(b).log() for b in (self.high, 1 / self.high if self.low is None else self.low))
        return (value <= high) & (value >= low)


@dataclass(frozen=True)
class Correction:
    """A correction by its kind; see the table above. What is None is as the kind has it.

    low, high: the bounds. level: of w and of what is bounded. normalise: weights are divided by their mean, over
    decisions, or over rows where w is of a row. reject: further masks. veto: a row with any decision whose own w is
    below it leaves the loss (slime: 1e-4). bypass: the clip compares with rollout in the place of old, and w is 1.

    Raises ValueError for an unknown kind or level.
    """

    kind: str = "tis"
    low: float | None = None
    high: float | None = None
    level: str | None = None
    normalise: bool = False
    reject: tuple[Rejection, ...] = ()
    veto: float | None = None
    bypass: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"correction {self.kind!r}: choose one of {', '.join(KINDS)}")
        if self.level is not None and self.level not in LEVELS:
            raise ValueError(f"level {self.level!r}: choose one of {', '.join(LEVELS)}")

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high) of what is bounded; of a mask without a lower bound that is 1 / high."""
        kind = KINDS[self.kind]
        high = kind.high if self.high is None else self.high
        low = kind.low if self.low is None else self.low
        if self.low is None and self.high is not None and kind.outside == "mask":
            low = 1 / self.high
        return 0.0 if low is None else low, torch.inf if high is None else high

    def __call__(self, old_logp: Tensor, rollout_logp: Tensor, mask: Tensor) -> Corrected:
        """Weights and mask of the decisions of an update: log-probs and mask [R, K]. Nothing has a gradient.

        Metrics: correction/weight, the mean of w before it is bounded, correction/limited, the share of decisions
        beyond the bounds, correction/rejected, the share that leaves the loss or is weighted 0 by a rejection or veto.
        """
        valid, kind = mask.bool(), KINDS[self.kind]
        x = difference(old_logp.detach(), rollout_logp.detach(), valid)
        weight = torch.ones_like(x)
        inside = kept = valid
        if self.kind != "none" and not self.bypass:
            weight = weights_of(x, valid, self.level or kind.level)
            low, high = self.bounds
            bounded = weights_of(x, valid, self.level or kind.bounded)
            inside = (bounded >= low) & (bounded <= high)
        mean = _mean(weight, valid)
        if kind.outside == "limit":
            weight = weight.clamp(*self.bounds) if self.kind != "none" and not self.bypass else weight
        elif kind.outside == "zero":
            weight = weight.where(inside, 0.0)
        else:
            kept = kept & inside
        for rejection in self.reject:
            stays = rejection.kept(x, valid)
            weight, kept = (weight.where(stays, 0.0), kept) if rejection.keeps else (weight, kept & stays)
        if self.veto is not None:
            kept = kept & ~(valid & (x < torch.tensor(self.veto).log())).any(1, keepdim=True)
        weight = weight.where(valid, 0.0)
        if self.normalise:
            weight = normalised(weight, valid, of_rows=(self.level or kind.level) != "token")
        metrics = {"weight": mean, "limited": _mean((~inside).float(), valid)}
        metrics["rejected"] = _mean((~kept).float(), valid)
        return Corrected(weight, kept, {f"correction/{name}": value for name, value in metrics.items()})


def weights_of(log_ratio: Tensor, valid: Tensor, level: str) -> Tensor:
    """w [R, K] of a level from log(old / rollout) [R, K], which is 0 where not valid; of a row all the same."""
    return exponent_of(log_ratio, valid, level).clamp(-LIMIT, LIMIT).exp()


def normalised(weight: Tensor, valid: Tensor, *, of_rows: bool) -> Tensor:
    """Weights [R, K] divided by their mean over the valid decisions, or over the rows that have any."""
    if of_rows:
        number = valid.sum(1)
        rows = weight.where(valid, 0.0).sum(1) / number.clamp(min=1)
        mean = rows.sum() / (number > 0).sum().clamp(min=1)
    else:
        mean = _mean(weight, valid)
    return weight / mean if mean > 1e-8 else weight


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    return values.where(valid, 0.0).sum() / valid.sum().clamp(min=1)
