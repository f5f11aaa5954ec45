"""What a noise level is on the path of a model: shares of signal and noise, and what a velocity is there."""

from typing import NamedTuple

from flowrl.policies.pipelines.steps.intercepted import Path
from samplers.renoising import signal


class Coordinates(NamedTuple):
    """What a level in (0, 1] is on a path: x = signal * x_0 + level * eps, and v = eps - x_0, or eps alone."""

    level: float
    signal: float
    less_clean: bool  # whether the velocity is eps - x_0

    @property
    def unit(self) -> float:
        """What x - level * v is divided by to give x_0."""
        return self.signal + self.level if self.less_clean else 1.0


def coordinates(path: Path, level: float) -> Coordinates:
    """Those of a level: the share of noise on the path of a flow, elsewhere its amplitude or the same ratio."""
    if path == "preserving":
        return Coordinates(level, float(signal(level)), True)
    if path == "exploding":
        return Coordinates(level / (1 - level), 1.0, False)
    return Coordinates(level, 1 - level, True)
