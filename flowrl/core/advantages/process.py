"""Rewards that sit at decisions: the steps of completions that a process reward values, placed and normalised."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowrl.contracts import Rollout, Steps
from flowrl.core.advantages.normalise import float64, normalise

OF_STEPS = ("baseline", "scale", "combine", "eps", "floor", "unbiased", "trim", "singleton", "factor")


class Placed(NamedTuple):
    """Values of S steps, float64 [S], each with the row and the decision that it sits at, int64 [S]."""

    row: Tensor
    column: Tensor
    value: Tensor

    def spread(self, value: Tensor, mask: Tensor) -> Tensor:
        """These values [S] at their decisions, float64 [R, K]; those of one decision add up."""
        found = torch.zeros(mask.shape, dtype=torch.float64)
        return found.index_put_((self.row, self.column), float64(value).nan_to_num(), accumulate=True)


def place(steps: Sequence[Steps], ends: Tensor, mask: Tensor) -> Placed:
    """Where the steps of rows sit: at the decision that says their last character.

    ends [R, K]: how many characters there are after each decision. A step whose end the model did not say itself (mask
    [R, K]) sits at its last decision before that; one with nothing before it is left out.
    """
    valid, found = mask.cpu().bool(), []
    for row, of in enumerate(steps):
        own = valid[row].nonzero()[:, 0]
        for end, value in of:
            if len(before := own[own <= int((ends[row].cpu() < end).sum())]):
                found.append((row, int(before[-1]), value))
    rows, columns, values = zip(*found, strict=True) if found else ((), (), ())
    row, column = (torch.tensor(part, dtype=torch.int64) for part in (rows, columns))
    return Placed(row, column, torch.tensor(values, dtype=torch.float64))


def at_end(outcome: Tensor, mask: Tensor) -> Placed:
    """An outcome [R] as a single step, at the last decision of each row that has one."""
    valid = mask.cpu().bool()
    rows = valid.any(1).nonzero()[:, 0]
    columns = valid.shape[1] - 1 - valid[rows].int().flip(1).argmax(1)
    return Placed(rows, columns, float64(outcome)[rows])


def _of_reward(name: str, value: Tensor, rollout: Rollout) -> Placed:
    """The steps of a reward [R]; of one that values whole samples its scores."""
    if name not in rollout.samples.steps:
        return at_end(value, rollout.mask)
    if "end" not in rollout.step_stats:
        raise ValueError(
            f"reward {name!r} gives values of steps of texts, but the decisions of this model are no tokens"
        )
    return place(rollout.samples.steps[name], rollout.step_stats["end"], rollout.mask)


def raw_steps(rewards: Mapping[str, Tensor], weights: Mapping[str, float], rollout: Rollout) -> Tensor:
    """The weighted sum of rewards [R] at their decisions, float64 [R, K]; what could not be scored adds 0."""
    total = torch.zeros(rollout.mask.shape, dtype=torch.float64)
    for name, value in rewards.items():
        if weights[name]:
            placed = _of_reward(name, value, rollout)
            total += weights[name] * placed.spread(placed.value, rollout.mask)
    return total


def normalised_steps(
    rewards: Mapping[str, Tensor],
    rollout: Rollout,
    group: Tensor,
    *,
    weights: Mapping[str, float],
    unscored: Tensor,
    asked: Mapping[str, Tensor] | None = None,
    combine: str = "per_reward",
    factor: float = 1.0,
    **options: Any,
) -> Tensor:
    """Rewards of steps normalised over all steps of all samples of a group, at their decisions: float64 [R, K].

    GRPO's process supervision (DeepSeekMath, arXiv:2402.03300, section 4.1.3), whose advantage of a token is the sum of
    those from it on (`returns.reward_to_go`). A reward that values whole samples has one step, at the last decision.
    combine: per_reward normalises each reward on its own, and weights are shares of the sum of their absolute values;
    sum takes the weighted steps of all rewards as one set. unscored bool [R] leave every statistic, as do samples that
    a reward is not asked about. options: those of `normalise`.
    """
    used = [name for name, weight in weights.items() if weight]
    size = sum(abs(weights[name]) for name in used) if combine == "per_reward" else 1.0
    sets: list[tuple[float, Placed]] = []
    for name in used:
        known = ~unscored.cpu() if not asked or name not in asked else ~unscored.cpu() & asked[name].cpu()
        row, column, value = _of_reward(name, rewards[name], rollout)
        sets.append((weights[name] / size, Placed(row, column, value.where(known[row], torch.nan))))
    if combine == "sum":
        parts = zip(*((p.row, p.column, weight * p.value) for weight, p in sets), strict=True)
        sets = [(1.0, Placed(*(torch.cat(part) for part in parts)))]
    total = torch.zeros(rollout.mask.shape, dtype=torch.float64)
    for weight, placed in sets:
        if len(placed.value):
            value = normalise(placed.value, group.cpu()[placed.row], **options)
            total += factor * weight * placed.spread(value, rollout.mask)
    return total


def decision_rewards(
    kind: str,
    rewards: Mapping[str, Tensor],
    rollout: Rollout,
    group: Tensor,
    *,
    weights: Mapping[str, float],
    asked: Mapping[str, Tensor],
    unscored: Tensor,
    options: Mapping[str, Any],
) -> tuple[Tensor | None, dict[str, float]]:
    """(the rewards that sit at decisions, float64 [R, K], or None; the weights of those that are outcomes of rows).

    Of credit `step` all rewards, normalised; of another kind those that give values of steps, as they are. options: the
    keys of `advantage`, of which OF_STEPS are read.
    """
    steps = rollout.samples.steps
    outcomes = {name: 0.0 if kind == "step" or name in steps else weight for name, weight in weights.items()}
    if kind == "step":
        how = {name: options[name] for name in OF_STEPS}
        given = {"weights": weights, "unscored": unscored, "asked": asked}
        return normalised_steps(rewards, rollout, group, **given, **how), outcomes
    valued = {name: weight if name in steps else 0.0 for name, weight in weights.items()}
    if not any(valued.values()):
        return None, dict(weights)
    return raw_steps(rewards, valued, rollout), outcomes
