"""How many more prompts are drawn than are trained, by how many of them had an advantage before."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Expansion:
    """The expansion ratio of RLCS (GLM-4.5V, arXiv:2507.01006): a moving average of 1 / (1 - share without advantage).

    decay: of the average, which begins at 1; most: what it acts up to.
    """

    decay: float
    most: float
    ratio: float = 1.0

    @classmethod
    def of(cls, keys: Any) -> "Expansion | None":
        """Of train.expand; None without."""
        return None if keys is None else cls(keys.decay, keys.most)

    def number(self, prompts: int) -> int:
        """How many prompts are drawn for so many that are to be trained."""
        return math.ceil(prompts * min(self.ratio, self.most) - 1e-9)

    def observe(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Moves the ratio by the groups/drawn and groups/kept of an iteration, without any kept towards `most`.

        Returns the metric `expansion`, what it was before.
        """
        before, drawn, kept = self.ratio, metrics["groups/drawn"], metrics["groups/kept"]
        needed = min(drawn / kept, self.most) if kept else self.most
        self.ratio = self.decay * self.ratio + (1 - self.decay) * needed
        return {"expansion": before}

    def state_dict(self) -> dict[str, Any]:
        """The ratio."""
        return {"ratio": self.ratio}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        self.ratio = state["ratio"]
