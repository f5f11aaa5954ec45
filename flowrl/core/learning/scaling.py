"""Loss scaling: gradients of a network in float16 are lifted above what that can hold, and put back before the step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MOST, LEAST = 2.0**24, 1.0


@dataclass
class LossScale:
    """A factor of the loss that halves where a gradient overflows and doubles after `every` steps without that.

    Mixed-precision training (arXiv:1710.03740, section 3.2), with the numbers of torch.amp.GradScaler.
    """

    factor: float = 2.0**16
    every: int = 2000
    clean: int = 0

    def observe(self, finite: bool) -> None:
        """Moves the factor by whether a step's gradient was finite."""
        self.clean = self.clean + 1 if finite else 0
        if not finite:
            self.factor = max(self.factor / 2, LEAST)
        elif self.clean == self.every:
            self.factor, self.clean = min(self.factor * 2, MOST), 0

    def state_dict(self) -> dict[str, Any]:
        """The factor, and the steps since it moved."""
        return {"factor": self.factor, "clean": self.clean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state."""
        self.factor, self.clean = state["factor"], state["clean"]


class Masters:
    """float32 copies of float16 parameters, which the optimizer moves in their place: its steps would be lost in them.

    Other parameters are their own. `optimized` has one for each, in their order.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self._pairs = [(p, nn.Parameter(p.detach().float())) for p in parameters if p.dtype == torch.float16]
        made = {id(p): master for p, master in self._pairs}
        self.optimized = [made.get(id(p), p) for p in parameters]

    @torch.no_grad()
    def take_gradients(self, factor: float) -> None:
        """Divides all gradients by the factor of the loss, those of masters in float32."""
        for parameter, master in self._pairs:
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        for parameter in self.optimized if factor != 1.0 else ():
            if parameter.grad is not None:
                parameter.grad.div_(factor)

    @torch.no_grad()
    def give_back(self) -> None:
        """Rounds each master into its parameter."""
        for parameter, master in self._pairs:
            parameter.copy_(master)

    def state(self) -> list[Tensor]:
        """The masters, in the order of their parameters."""
        return [master.detach() for _, master in self._pairs]

    @torch.no_grad()
    def load(self, state: Sequence[Tensor]) -> None:
        """Restores what `state` gave; without any, they begin at the parameters."""
        for i, (parameter, master) in enumerate(self._pairs):
            master.copy_(state[i] if state else parameter.float())
