"""How what differentiable rewards say of finished samples reaches the weights, step by step of their walk.

The loss of a sample is a function of its reward, and its gradient at the sample, the pull, takes one decode and one
pass back through decoder and rewards. From there the walk is gone back: a step from x to carry * x + gain * v(x) adds
gain * <pull, dv/dtheta>, which takes the graph of that step alone. With a nested view the pull that goes on is whole,
carry * pull + gain * <pull, dv/dx>, and the gradient that of the whole chain of steps; without one the way through v
is left out, and carry * pull goes on. A step may let a share of the way through v pass, and where steps are missing
between two that are gone back, the pull is carried over them.

What scores other pictures than the finished one needs `reward_of` alone, and is differentiated as it stands. Where a
divergence is paid, the reference's velocities at the same states are looked up first.
"""

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from flowrl.contracts import Batch, Field, Finished, Looks, Objective, Progress
from flowrl.core.backward import StepLoss
from flowrl.core.objectives.aggregate import merge_metrics, reduce_metrics


class Pulling(Objective, Protocol):
    """An objective that needs a pull."""

    def sample_loss(self, reward: Tensor, batch: Batch) -> Tensor:
        """The loss [r] of samples, from their rewards [r] and the data of all of their columns."""
        ...


def backward_pull(policy: Looks, rows: Tensor, loss: StepLoss, progress: Progress | None = None) -> None:
    """Adds the gradient of the loss of these rows, int64 [r], to the policy's parameters. progress: see `Looks`."""
    units: dict[int, float] = {}  # by row, of the level that its pull is at, which it is carried from: see Field
    pulls = _pulls(policy, rows, loss, units) if "pull" in loss.objective.needs else None
    held = _reference(policy, rows, loss, progress) if "reference" in loss.objective.needs else {}

    def visit(seen: Field) -> None:
        others = {}
        if held:
            others["reference"] = torch.stack([held[row, int(seen.columns)] for row in seen.rows.tolist()])
        if pulls is None:
            loss(seen, others).backward()
            return
        mine = seen.rows.tolist()
        gap = units[mine[0]] / (seen.carry * seen.unit)
        pull = gap * torch.stack([pulls[row] for row in mine])
        loss(seen, others, pull=pull).backward()
        further = seen.carry * pull
        if seen.x.grad is not None:
            weight = loss.scale * loss.weights[seen.rows, int(seen.columns)].to(pull)
            further = further + seen.through * seen.x.grad / weight.reshape(-1, *(1,) * (pull.ndim - 1))
        pulls.update(zip(mine, further, strict=True))
        units.update(dict.fromkeys(mine, seen.unit))

    policy.look(loss.rollout, rows, loss.objective.view, visit, progress=progress)


def _reference(policy: Looks, rows: Tensor, loss: StepLoss, progress: Progress | None) -> dict[tuple[int, int], Tensor]:
    """The reference's velocity at each state of these rows, by row and column."""
    found: dict[tuple[int, int], Tensor] = {}

    def visit(seen: Field) -> None:
        found.update(zip([(row, int(seen.columns)) for row in seen.rows.tolist()], seen.v.detach(), strict=True))

    with torch.no_grad():
        policy.look(loss.rollout, rows, replace(loss.objective.view, weights="reference"), visit, progress=progress)
    return found


def _pulls(policy: Looks, rows: Tensor, loss: StepLoss, units: dict[int, float]) -> dict[int, Tensor]:
    """The gradient of each row's loss at its finished sample, by row; the metrics sample_loss and pull_norm; and units,
    which are filled in."""
    objective: Pulling = loss.objective  # pyright: ignore[reportAssignmentType]
    reward_of = loss.reward_of
    assert reward_of is not None  # the objective needs it
    columns = torch.arange(loss.rollout.rollout_logp.shape[1])
    found: dict[int, Tensor] = {}

    def visit(seen: Finished) -> None:
        x0 = seen.x0.detach().requires_grad_()
        with torch.enable_grad():
            reward = reward_of(seen.show(x0), None)
            value = objective.sample_loss(reward, loss.batch(seen.rows, columns, reward.device))
        pull = torch.autograd.grad(value.sum(), x0)[0]
        found.update(zip(seen.rows.tolist(), pull, strict=True))
        units.update(dict.fromkeys(seen.rows.tolist(), seen.unit))
        told = {"sample_loss": value.detach(), "pull_norm": pull.flatten(1).norm(dim=1)}
        share = loss.share[seen.rows].sum(1, keepdim=True).to(pull)
        told = reduce_metrics({name: number[:, None].to(pull) for name, number in told.items()}, share)
        loss.total = merge_metrics(loss.total, told)

    policy.look(loss.rollout, rows, replace(objective.view, states="finished"), visit)
    return found
