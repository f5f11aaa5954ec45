"""Entropy as part of a loss, and a coefficient that holds it near a target."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

MOST = 1.0  # that the coefficient grows to (TRL)


@dataclass
class EntropyControl:
    """The coefficient of an entropy bonus that rises by `step` after an iteration whose mean entropy was below `target`
    nats a decision, and falls by it otherwise, within [0, 1]; it acts while the entropy is at most the target.

    Adaptive entropy control of Skywork-OR1 (arXiv:2505.22312): step 0.005, target 0.2. The entropy is that under the
    weights that learn, mean over an iteration's looks; before the first it counts as above.
    """

    target: float
    step: float = 0.005
    start: float = 0.0

    @classmethod
    def of(cls, keys: Any) -> "EntropyControl | None":
        """Of an objective's entropy_target, entropy_step and entropy; None without a target."""
        target = getattr(keys, "entropy_target", None)
        return None if target is None else cls(target, keys.entropy_step, keys.entropy)

    def applied(self, objective: Any) -> Any:
        """The objective with the coefficient of now; as it is where it has none."""
        return replace(objective, entropy=self.now) if hasattr(objective, "entropy") else objective

    def __post_init__(self) -> None:
        self.coefficient, self.entropy = self.start, float("inf")

    @property
    def now(self) -> float:
        """What the next iteration's loss takes."""
        return self.coefficient if self.entropy <= self.target else 0.0

    def observe(self, entropy: float) -> None:
        """Moves the coefficient by what an iteration's mean entropy was; NaN moves nothing."""
        if entropy != entropy:
            return
        self.entropy = entropy
        moved = self.coefficient + (self.step if entropy < self.target else -self.step)
        self.coefficient = min(max(moved, 0.0), MOST)

    def state_dict(self) -> dict[str, Any]:
        """The coefficient, and the entropy that was seen last (null: none)."""
        seen = None if self.entropy == float("inf") else self.entropy
        return {"coefficient": self.coefficient, "entropy": seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        self.coefficient = state["coefficient"]
        self.entropy = float("inf") if state["entropy"] is None else state["entropy"]
