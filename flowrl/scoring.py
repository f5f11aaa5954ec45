"""Runs the named rewards of a recipe on finished samples.

A reward is a function `(samples, **args)` or a class that is constructed with the arguments and then called with
samples; either returns float32 [B]. NaN means "could not be scored" and passes through. An exception stops the run
under the reward's name, or marks the samples with NaN where the recipe says `required: false`; it never becomes a
number.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from flowrl import names
from flowrl.contracts import Reward, Samples


class RewardError(RuntimeError):
    """A reward failed or returned something that is no score. The text names it; the cause is chained."""


class Spec(Protocol):
    """What a recipe says about one reward (flowrl.recipe.schema.RewardSpec)."""

    @property
    def use(self) -> str:
        """Short name or dotted path."""
        ...

    @property
    def weight(self) -> float:
        """0 marks a witness."""
        ...

    @property
    def args(self) -> dict[str, Any]:
        """What the reward is given beside samples."""
        ...

    @property
    def required(self) -> bool:
        """Whether a failure stops the run."""
        ...


@dataclass(frozen=True)
class Loaded:
    """A reward ready to be called, and how it counts."""

    call: Reward
    weight: float = 1.0
    required: bool = True


def load(specs: Mapping[str, Spec]) -> dict[str, Loaded]:
    """The rewards of a recipe, imported and constructed. Raises RewardError where a constructor fails."""
    return {name: Loaded(_construct(name, spec), spec.weight, spec.required) for name, spec in specs.items()}


def _construct(name: str, spec: Spec) -> Reward:
    thing = names.load(spec.use, names.rewards())
    if not inspect.isclass(thing):
        return partial(thing, **spec.args)
    construct: Any = thing
    try:
        return construct(**spec.args)
    except Exception as error:
        raise RewardError(f"reward {name!r} ({spec.use}) cannot be set up: {_reason(error)}") from error


class Scorer:
    """Scores samples with every reward, `batch` samples at a time (None: all at once).

    failures counts the samples that an optional reward failed on since the start.
    """

    def __init__(self, rewards: Mapping[str, Loaded], *, batch: int | None = None):
        if batch is not None and batch < 1:
            raise ValueError(f"batch={batch}: give 1 or more, or None for all at once")
        self.rewards, self.batch = dict(rewards), batch
        self.weights = {name: reward.weight for name, reward in self.rewards.items()}
        self.failures = dict.fromkeys(self.rewards, 0)

    def __call__(self, samples: Samples, progress: Callable[[str], None] | None = None) -> dict[str, Tensor]:
        """Reward name -> float32 [B] on the CPU. progress is told the name of each reward that is done."""
        step = self.batch or max(len(samples), 1)
        # One slice of samples goes to every reward before the next: rewards that share work (a checker's strict and
        # graded score) meet the same tensors. Unsplit samples are handed over as they are.
        scores: dict[str, list[Tensor]] = {name: [] for name in self.rewards}
        for start in range(0, len(samples), step):
            index = range(start, min(start + step, len(samples)))
            part = samples if len(index) == len(samples) else samples[index]
            for name in self.rewards:
                scores[name].append(self._score(name, part))
                if progress is not None and index.stop == len(samples):
                    progress(name)
        return {name: torch.cat(parts) if parts else torch.zeros(0) for name, parts in scores.items()}

    @torch.no_grad()
    def _score(self, name: str, samples: Samples) -> Tensor:
        reward = self.rewards[name]
        try:
            return _checked(name, reward.call(samples), len(samples))
        except Exception as error:
            if reward.required:
                if isinstance(error, RewardError):
                    raise
                raise RewardError(f"reward {name!r} failed on {len(samples)} samples: {_reason(error)}") from error
            if not self.failures[name]:
                warnings.warn(f"optional reward {name!r} failed, its samples are not scored: {error}", stacklevel=2)
            self.failures[name] += len(samples)
            return torch.full((len(samples),), torch.nan)


def _checked(name: str, score: Any, number: int) -> Tensor:
    """The score as float32 [number] on the CPU. Raises RewardError for anything else than a floating tensor [B]."""
    if not isinstance(score, Tensor):
        got = f"a {type(score).__name__}"
    elif score.shape != (number,):
        got = f"a tensor of shape {list(score.shape)}"
    elif not score.is_floating_point():
        got = f"a tensor of {score.dtype}"
    elif torch.isinf(score).any():
        got = "an infinite score"
    else:
        return score.detach().to("cpu", torch.float32)
    raise RewardError(f"reward {name!r} returned {got}; accepted: float32 [{number}], finite or NaN, one a sample")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
