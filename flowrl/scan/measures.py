"""What a scan measures of the groups of one value. Pure functions on rewards [P, L]: L samples of each of P prompts.

Everything is first a number a prompt, then a mean over prompts with its standard error: samples of one prompt are no
independent witnesses. NaN marks a sample that could not be scored, and a prompt without a number.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowrl.core.advantages import group_stats
from flowrl.core.evaluation import Mean, mean

SHOWN = 2.0  # standard errors of a difference from which on it counts as shown, as in reports


@dataclass(frozen=True)
class Row:
    """The measures of one value. spreads, qualities float64 [P]: by prompt, in equal order and at equal seeds."""

    label: str
    spreads: Tensor
    qualities: Tensor
    silent: float  # share of groups without any spread
    reward: Mean
    ode: Mean
    deviation: float  # standard deviation of the ODE samples' rewards
    by_reward: dict[str, tuple[Mean, Mean]] = field(default_factory=dict)  # of each: samples, minus the ODE's
    distance: Mean | None = None
    statistics: dict[str, float] = field(default_factory=dict)
    ode_statistics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0  # a sample
    forwards: float = 0.0  # a sample
    ode_forwards: float = 0.0

    @property
    def spread(self) -> Mean:
        """Standard deviation of the reward within a group, mean over groups."""
        return mean(self.spreads)

    @property
    def quality(self) -> Mean:
        """Reward of the samples minus that of the ODE's samples from the same initial noise."""
        return mean(self.qualities)

    @property
    def diversity(self) -> float | None:
        """Distance between two samples of a group, or the share of different texts in it."""
        return self.statistics.get("samples/diversity", self.statistics.get("samples/distinct"))


def spreads(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """(unbiased standard deviation of each group, whether it is silent): float64 [P], bool [P].

    A group with fewer than two scored samples has no deviation (NaN), and trains nothing: it is silent.
    """
    number, size = rewards.shape
    stats = group_stats(rewards.flatten(), torch.arange(number).repeat_interleave(size), unbiased=True)
    return stats.std.masked_fill(stats.count < 2, torch.nan), stats.tied


def paired(rewards: Tensor, ode: Tensor) -> Tensor:
    """Mean of reward - ode over the samples of a prompt that both could score, float64 [P]; both [P, L]."""
    return (rewards.double() - ode.double()).nanmean(1)


def by_prompt(rewards: Tensor) -> Tensor:
    """Mean reward of each prompt's scored samples, float64 [P]."""
    return rewards.double().nanmean(1)


def deviation(rewards: Tensor) -> float:
    """Standard deviation over all scored samples; 0 for fewer than two."""
    known = rewards.double()[~rewards.isnan()]
    return float(known.std()) if len(known) > 1 else 0.0


def difference(first: Tensor, second: Tensor) -> Mean:
    """first - second, prompt by prompt, with the standard error of pairs."""
    return mean(first - second)


def shown(found: Mean) -> bool:
    """Whether a difference lies beyond SHOWN standard errors; never of fewer than two prompts."""
    return found.number > 1 and abs(found.value) > SHOWN * found.error
