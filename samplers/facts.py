"""What a recipe has to know of a step before torch is loaded, said beside the step: read off its source there.

    @facts(unit_variance=True)
    def my_step(x, v, s, s_next, *, noise, s_cap): ...

stochastic       whether it draws; true where nothing is said. False needs no draws of it anywhere.
noise            of a step that ships: the usual strength by family of models (None: all others); otherwise 0.7
share            whether its noise is a share of what may be drawn afresh, so that 1 is the most
unit_variance    whether it is scored by -(x - mean)^2, which is no density: see `Gaussian.log_prob_sums`
draws_at_zero    whether it draws where it arrives at the data, s_next = 0; true where nothing is said

Set as attributes (`my_step.unit_variance = True`) they are the same.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Step = TypeVar("Step", bound=Callable[..., Any])


def facts(
    *,
    stochastic: bool = True,
    noise: Mapping[str | None, float] | None = None,
    share: bool = False,
    unit_variance: bool = False,
    draws_at_zero: bool = True,
) -> Callable[[Step], Step]:
    """Says these things of a step; see the module's docstring."""
    said: dict[str, Any] = {"stochastic": stochastic, "draws_at_zero": draws_at_zero, "noise": noise}
    said |= {"share": share or None, "unit_variance": unit_variance or None}

    def say(step: Step) -> Step:
        for name, value in said.items():
            if value is not None:
                setattr(step, name, value)
        return step

    return say
