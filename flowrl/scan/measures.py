"""What a scan measures on the groups of one value. Pure functions on rewards [P, L]: L samples of each of P prompts.

Everything is first one number per prompt, then a mean over prompts with its standard error: samples of one prompt are
not independent. NaN marks a sample that could not be scored, and a prompt without a number.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowrl.core.advantages.combined import group_stats
from flowrl.core.evaluation import Mean, mean

MIN_STANDARD_ERRORS = 2.0  # of a significant difference, as in reports


@dataclass(frozen=True)
class ValueMeasures:
    """The measures of one value. spreads, qualities: float64 [P], by prompt, in the same order, at the same seeds."""

    label: str
    spreads: Tensor
    qualities: Tensor
    silent: float  # share of groups without any spread
    reward: Mean
    ode: Mean
    deviation: float  # standard deviation of the ODE samples' rewards
    by_reward: dict[str, tuple[Mean, Mean]] = field(default_factory=dict)  # samples, and samples minus the ODE's
    distance: Mean | None = None
    statistics: dict[str, float] = field(default_factory=dict)
    ode_statistics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0  # per sample
    forwards: float = 0.0  # per sample
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
        """Mean distance between two samples of a group, or the share of distinct texts in it."""
        return self.statistics.get("samples/diversity", self.statistics.get("samples/distinct"))


def group_spreads(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """(unbiased standard deviation of each group float64 [P], whether it is silent bool [P]) of rewards float [P, L].

    A group with fewer than two scored samples has no deviation (NaN) and teaches nothing: it is silent.
    """
    number, size = rewards.shape
    stats = group_stats(rewards.flatten(), torch.arange(number).repeat_interleave(size), unbiased=True)
    return stats.std.masked_fill(stats.count < 2, torch.nan), stats.tied


def paired_difference(rewards: Tensor, ode: Tensor) -> Tensor:
    """Mean of rewards - ode, both float [P, L], over the samples of a prompt that have both scores; float64 [P]."""
    return (rewards.double() - ode.double()).nanmean(1)


def prompt_means(rewards: Tensor) -> Tensor:
    """Mean reward of each prompt's scored samples, float64 [P], of rewards float [P, L]."""
    return rewards.double().nanmean(1)


def standard_deviation(rewards: Tensor) -> float:
    """Standard deviation over all scored samples of rewards float [...]; 0 for fewer than two."""
    known = rewards.double()[~rewards.isnan()]
    return float(known.std()) if len(known) > 1 else 0.0


def mean_difference(first: Tensor, second: Tensor) -> Mean:
    """Mean of first - second, both float64 [P], with the standard error of the paired differences."""
    return mean(first - second)


def is_significant(difference: Mean) -> bool:
    """Whether a difference exceeds MIN_STANDARD_ERRORS standard errors; never for fewer than two prompts."""
    return difference.number > 1 and abs(difference.value) > MIN_STANDARD_ERRORS * difference.error
