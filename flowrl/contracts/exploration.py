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

    first: the number from which on samples of a prompt name their noise; the run reserves enough of them. own: where
    ranks draw together, the positions of the prompts that this one draws (None: all).
    """

    prompts: Sequence[Prompt]
    group: int
    plan: Any
    seed: int
    first: int
    progress: Progress | None = None
    own: Sequence[int] | None = None

    @property
    def here(self) -> Sequence[Prompt]:
        """The prompts that are drawn by this rank."""
        return self.prompts if self.own is None else [self.prompts[i] for i in self.own]


class Explored(NamedTuple):
    """A rollout, its rewards [B] by name, where they are known already, and metrics of how it came about.

    at: where its groups are not those of the drawing's prompts, their places among the groups that all ranks give.
    """

    rollout: Rollout
    rewards: dict[str, Tensor] | None
    metrics: dict[str, float]
    at: Sequence[int] | None = None


# of a policy; None: where ranks draw together, this one has nothing
Explore = Callable[[Any, Drawing, Score], Explored | None]
