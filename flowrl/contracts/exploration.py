"""Drawing the samples of prompts in more than one go, by what came of the first: trees, hints, corrections, values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from flowrl.contracts.looks import Progress
from flowrl.contracts.samples import Prompt, Rollout, Samples

Score = Callable[[Samples], dict[str, Tensor]]  # every reward of samples, [B] by name


@dataclass(frozen=True)
class Drawing:
    """What is to be drawn: `group` samples of each prompt by a plan, as in a plain rollout.

    first: the number from which on samples of a prompt name their noise; the run reserves enough of them.
    """

    prompts: Sequence[Prompt]
    group: int
    plan: Any
    seed: int
    first: int
    progress: Progress | None = None


class Explored(NamedTuple):
    """A rollout, its rewards [B] by name, where they are known already, and metrics of how it came about."""

    rollout: Rollout
    rewards: dict[str, Tensor] | None
    metrics: dict[str, float]


Explore = Callable[[Any, Drawing, Score], Explored]  # of a policy
