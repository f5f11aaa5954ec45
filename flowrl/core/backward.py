"""How the loss of one optimizer step reaches the weights.

A decision's loss usually depends on that decision alone: each block of a look is differentiated as it comes. A loss
of whole rows, such as the clipped ratio of a sequence, cannot be told from some of their columns. Where the policy
hands rows over in pieces, its gradient takes two passes, by the chain rule over the decisions j of a row:

    dL/dtheta = sum_j slope_j dlogp_j/dtheta,   slope_j = dL/dlogp_j at the current log-probs of the whole row

The first pass collects log-probs without gradient, from which the objective itself gives the slopes. The second goes
over the blocks again and differentiates the sum of slope_j logp_j in each. That is exact for every loss, whatever it
does with a row, and costs one more forward of each decision. A divergence that the policy computes is treated the same
way.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import Batch, Field, LogProbs, Looks, Objective, Progress, RewardOf, Rollout, Valued, View
from flowrl.core.objectives.aggregate import merge_metrics, reduce_metrics


@dataclass
class StepLoss:
    """The loss of one optimizer step, by blocks: called with each, it returns its share, 0-d, and adds up the metrics.

    adv [R], or [R, K] where decisions of a row differ. weights [R, K] reduce the loss and share [R, K] the metrics (see
    objectives/aggregate.py). together int64 [R]: equal for rows that the objective takes together. unmoved: other
    weights that are those of now. reward_of: see `Batch`. scale: a factor of what is returned, and of no metric.
    """

    rollout: Rollout
    adv: Tensor
    objective: Objective
    weights: Tensor
    share: Tensor
    together: Tensor | None = None
    unmoved: frozenset[str] = frozenset()
    reward_of: RewardOf | None = None
    scale: float = 1.0
    total: dict[str, Tensor] = field(default_factory=dict)

    def __call__(
        self,
        seen: LogProbs | Field | Valued,
        velocities: Mapping[str, Tensor] | None = None,
        *,
        pull: Tensor | None = None,
    ) -> Tensor:
        """The weighted sum of the block's losses. velocities: see `Batch`."""
        at = (seen.rows[:, None], seen.columns[None])
        device = _shown(seen).device
        batch = self.batch(seen.rows, seen.columns, device, velocities=velocities or {}, pull=pull)
        loss, metrics = self.objective(seen, batch)
        part = (loss * self.weights[at].to(device)).sum()
        reduced = reduce_metrics(metrics, self.share[at].to(device)) | {"loss": part.detach()}
        self.total = merge_metrics(self.total, reduced)
        return part if self.scale == 1.0 else part * self.scale

    def batch(self, rows: Tensor, columns: Tensor, device: torch.device, **more: Any) -> Batch:
        """The data of rows int64 [r] and columns int64 [k]; more: what else of a `Batch` is there."""
        rollout, at = self.rollout, (rows[:, None], columns[None])
        return Batch(
            rollout_logp=rollout.rollout_logp[at].to(device),
            adv=self.adv[at if self.adv.ndim == 2 else rows].to(device),
            mask=rollout.mask[at].to(device),
            reference=None if rollout.reference is None else rollout.reference[at].to(device),
            step_stats={name: values[at].to(device) for name, values in rollout.step_stats.items()},
            together=None if self.together is None else self.together[rows].to(device),
            value=None if rollout.value is None else rollout.value[at].to(device),
            returns=None if rollout.returns is None else rollout.returns[at].to(device),
            reward_of=self.reward_of,
            old_logp=None if rollout.old_logp is None else rollout.old_logp[at].to(device),
            shown=None if rollout.shown is None else rollout.shown[at].to(device),
            **more,
        )


def _shown(seen: LogProbs | Field | Valued) -> Tensor:
    """What of a block has a gradient."""
    if isinstance(seen, Field):
        return seen.v
    return seen.value if isinstance(seen, Valued) else seen.logp


def with_step_weights(adv: Tensor, objective: Objective, rollout: Rollout, rows: Tensor) -> Tensor:
    """Advantages [R] or [R, K] times the objective's weights of the decisions of the update `rows`: [R, K].

    As they are where it has none. With weights, 0 in all other rows.
    """
    factor = objective.step_weights(
        rollout.mask[rows], {name: values[rows] for name, values in rollout.step_stats.items()}
    )
    if factor is None:
        return adv
    spread = adv.new_zeros(rollout.rollout_logp.shape)
    spread[rows] = (adv[rows] if adv.ndim == 2 else adv[rows, None]) * factor.to(adv)
    return spread


def fill_reference(policy: Looks, rollout: Rollout, rows: Tensor, view: View, progress: Progress | None = None) -> None:
    """Fills in `rollout.reference` for rows int64 [r], and lets the policy keep what a later look of this view uses."""
    reference = torch.zeros_like(rollout.rollout_logp) if rollout.reference is None else rollout.reference
    rollout.reference = reference

    def visit(seen: LogProbs) -> None:
        reference[seen.rows[:, None], seen.columns[None]] = seen.logp.to(reference)

    policy.look(rollout, rows, replace(view, weights="reference", centred=False), visit, progress=progress)


def fill_old(policy: Looks, rollout: Rollout, rows: Tensor, progress: Progress | None = None) -> None:
    """Fills in `rollout.old_logp` for rows int64 [r]: what the weights of now give, without gradient."""
    old = torch.zeros_like(rollout.rollout_logp) if rollout.old_logp is None else rollout.old_logp
    rollout.old_logp = old
    _fill(old, policy, rollout, rows, View(), progress)


def fill_shown(policy: Looks, rollout: Rollout, rows: Tensor, progress: Progress | None = None) -> None:
    """Fills in `rollout.shown` for rows int64 [r]: what the weights of now give beside other pictures, without
    gradient."""
    shown = torch.zeros_like(rollout.rollout_logp) if rollout.shown is None else rollout.shown
    rollout.shown = shown
    _fill(shown, policy, rollout, rows, View(shown=True), progress)


def _fill(values: Tensor, policy: Looks, rollout: Rollout, rows: Tensor, view: View, progress: Progress | None) -> None:
    """Writes what a look without gradient gives of rows int64 [r] into values [R, K]."""

    def visit(seen: LogProbs) -> None:
        values[seen.rows[:, None], seen.columns[None]] = seen.logp.to(values)

    with torch.no_grad():
        policy.look(rollout, rows, view, visit, progress=progress)


def backward(policy: Looks, rows: Tensor, loss: StepLoss, progress: Progress | None = None) -> None:
    """Adds the gradient of the loss of rows int64 [r] to the policy's parameters, and their metrics to `loss.total`.

    Raises ValueError if a policy that claims to hand over whole rows does not.
    """
    objective, rollout = loss.objective, loss.rollout
    of_rows = objective.together == "row"
    in_pieces = of_rows and not policy.whole_rows and rollout.rollout_logp.shape[1] > 1
    surrogate = _slopes(policy, rows, loss, progress) if in_pieces else None

    def visit(seen: LogProbs) -> None:
        if surrogate is not None:
            part = surrogate(seen)
        else:
            if of_rows:
                _check_whole(rollout, seen)
            part = loss(seen)
        if part.requires_grad:
            part.backward()

    policy.look(rollout, rows, objective.view, visit, progress=progress)


# What a loss may depend on, with gradient: fields of LogProbs.
_VARIABLES = ("logp", "kl", "centred", "entropy")


@dataclass(frozen=True)
class _Surrogate:
    """A function of a block's variables that has the gradient of the loss of whole rows.

    Its value means nothing, and is NaN where padding is.
    """

    place: Tensor  # [R], of a row among the slopes
    slopes: dict[str, Tensor]  # [r, K], by name of a variable

    def __call__(self, seen: LogProbs) -> Tensor:
        at = self.place[seen.rows][:, None], seen.columns[None]
        total = seen.logp.new_zeros(())
        for name, slope in self.slopes.items():
            total = total + (getattr(seen, name) * slope[at]).sum()
        return total


def _slopes(policy: Looks, rows: Tensor, loss: StepLoss, progress: Progress | None) -> _Surrogate:
    """The first pass. Raises ValueError where a trained decision is not handed over at all."""
    rollout, columns = loss.rollout, torch.arange(loss.rollout.rollout_logp.shape[1])
    place = torch.full((len(rollout.rollout_logp),), -1)
    place[rows] = torch.arange(len(rows))
    met = torch.zeros(len(rows), len(columns), dtype=torch.bool)
    values_seen: dict[str, Tensor] = {}

    def collect(seen: LogProbs) -> None:
        at = place[seen.rows][:, None], seen.columns[None]
        met[at] = True
        for name in _VARIABLES:
            if (value := getattr(seen, name)) is not None:
                values_seen.setdefault(name, value.new_zeros(met.shape))[at] = value.detach()

    with torch.no_grad():
        policy.look(rollout, rows, loss.objective.view, collect, progress=progress)
    if not values_seen or (rollout.mask[rows] & ~met).any():
        raise ValueError(f"{type(policy).__name__}.look leaves out trained decisions of the rows that it was given")
    leaves = {name: value.requires_grad_() for name, value in values_seen.items()}
    value = loss(LogProbs(rows, columns, **leaves))
    slopes = torch.autograd.grad(value, tuple(leaves.values()), materialize_grads=True)
    return _Surrogate(place, dict(zip(leaves, slopes, strict=True)))


def _check_whole(rollout: Rollout, seen: LogProbs) -> None:
    mask = rollout.mask[seen.rows]
    if mask.sum() != mask[:, seen.columns].sum():
        raise ValueError("the objective needs whole rows, and was given some of their columns: set Policy.whole_rows")
