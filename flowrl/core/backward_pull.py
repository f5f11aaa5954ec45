"""How what differentiable rewards say of finished samples reaches the weights, step by step of their walk.

The loss of a sample is a function of its reward, and its gradient at the sample, the pull, takes one decode and one
pass back through decoder and rewards. From there the walk is gone back: a step from x to carry * x + gain * v(x) adds
gain * <pull, dv/dtheta>, which takes the graph of that step alone. With a nested view the pull that goes on is whole,
carry * pull + gain * <pull, dv/dx>, and the gradient that of the whole chain of steps; without one the way through v
is left out, and carry * pull goes on.

What scores other pictures than the finished one needs `reward_of` alone, and is differentiated as it stands.
"""

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from flowrl.contracts import Field, Finished, Looks, Objective, Progress
from flowrl.core.backward import StepLoss
from flowrl.core.objectives.aggregate import merge_metrics, reduce_metrics


class Pulling(Objective, Protocol):
    """An objective that needs a pull."""

    def of_reward(self, reward: Tensor) -> Tensor:
        """The loss [r] of finished samples, from their rewards [r]."""
        ...


def backward_pull(policy: Looks, rows: Tensor, loss: StepLoss, progress: Progress | None = None) -> None:
    """Adds the gradient of the loss of these rows, int64 [r], to the policy's parameters. progress: see `Looks`."""
    pulls = _pulls(policy, rows, loss) if "pull" in loss.objective.needs else None

    def visit(seen: Field) -> None:
        if pulls is None:
            loss(seen).backward()
            return
        mine = seen.rows.tolist()
        pull = torch.stack([pulls[row] for row in mine])
        loss(seen, pull=pull).backward()
        further = seen.carry * pull
        if seen.x.grad is not None:
            weight = loss.weights[seen.rows, int(seen.columns)].to(pull)
            further = further + seen.x.grad / weight.reshape(-1, *(1,) * (pull.ndim - 1))
        pulls.update(zip(mine, further, strict=True))

    policy.look(loss.rollout, rows, loss.objective.view, visit, progress=progress)


def _pulls(policy: Looks, rows: Tensor, loss: StepLoss) -> dict[int, Tensor]:
    """The gradient of each row's loss at its finished sample, by row; and the metrics sample_loss and pull_norm."""
    objective: Pulling = loss.objective  # pyright: ignore[reportAssignmentType]
    reward_of = loss.reward_of
    assert reward_of is not None  # the objective needs it
    found: dict[int, Tensor] = {}

    def visit(seen: Finished) -> None:
        x0 = seen.x0.detach().requires_grad_()
        with torch.enable_grad():
            value = objective.of_reward(reward_of(seen.show(x0), None))
        pull = torch.autograd.grad(value.sum(), x0)[0]
        found.update(zip(seen.rows.tolist(), pull, strict=True))
        told = {"sample_loss": value.detach(), "pull_norm": pull.flatten(1).norm(dim=1)}
        share = loss.share[seen.rows].sum(1, keepdim=True).to(pull)
        told = reduce_metrics({name: number[:, None].to(pull) for name, number in told.items()}, share)
        loss.total = merge_metrics(loss.total, told)

    policy.look(loss.rollout, rows, replace(objective.view, states="finished"), visit)
    return found
