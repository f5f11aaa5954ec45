"""What turns gradients into better weights: AdamW, its learning rate, gradient clipping, and averaged weights."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

RAMPS = ("moves", "steps")


class Learner:
    """Optimizer, learning-rate schedule and moving average of some parameters.

    warmup: optimizer steps of linear rise. schedule: constant, linear or cosine over `total` steps. average: decay of
    the moving average (None: none), which moves every `average_every` steps and whose decay is at most
    (1 + n) / (10 + n): n counts its moves (ramp `moves`) or, as in Flow-GRPO's code, optimizer steps (ramp `steps`).
    All state is in `state_dict`. share: of a run that is limited by time, how much of that is spent, set from outside:
    a schedule is as far as this or the steps say, whichever is further. base_lr: what the schedule multiplies, by the
    number of steps taken; set from outside where it is not `lr` all the time.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-4,
        max_grad_norm: float | None = 1.0,
        warmup: int = 0,
        schedule: str = "constant",
        total: int = 1,
        average: float | None = None,
        average_every: int = 1,
        ramp: str = "moves",
    ):
        if ramp not in RAMPS:
            raise ValueError(f"ramp={ramp!r}: choose one of {', '.join(RAMPS)}")
        self.parameters = list(parameters)
        self.max_grad_norm, self.average_decay, self.average_every = max_grad_norm, average or 0.0, average_every
        self.ramp = ramp
        self.optimizer = torch.optim.AdamW(self.parameters, lr, betas=betas, weight_decay=weight_decay)
        self.average = None if average is None else [p.detach().clone() for p in self.parameters]
        self.steps, self.factor, self.share = 0, 1.0, 0.0
        self.base_lr: Callable[[int], float] = lambda steps: lr
        self._schedule = lambda steps: _rate(steps, warmup, schedule, total, self.share)

    def step(self) -> Tensor:
        """One optimizer step on the gradients at hand; returns their norm before clipping, and clears them.

        A gradient that is not finite moves nothing: the norm that is returned tells.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm or math.inf)
        if torch.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr
            self.optimizer.step()
            self.steps += 1
            if self.average is not None and self.steps % self.average_every == 0:
                self._move_average(self.average, self.average_decay)
        self.optimizer.zero_grad()
        return norm.detach()

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.factor * (self.base_lr(self.steps) * self._schedule(self.steps))

    def lower(self, factor: float) -> None:
        """Multiplies every later learning rate, that of the next step included, by `factor` in (0, 1]."""
        if not 0 < factor <= 1:
            raise ValueError(f"factor={factor}: a learning rate is lowered by a factor in (0, 1]")
        self.factor *= factor

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the parameters hold their moving average, where one is kept."""
        if self.average is None:
            yield
            return
        held = [p.detach().clone() for p in self.parameters]
        _copy(self.average, self.parameters)
        try:
            yield
        finally:
            _copy(held, self.parameters)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes as it learns, but the parameters. Hyper-parameters are the recipe's, not state."""
        return {
            "moments": self.optimizer.state_dict()["state"],
            "average": self.average,
            "steps": self.steps,
            "factor": self.factor,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state. An average that was not kept before begins at the parameters of now."""
        own = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": state["moments"], "param_groups": own["param_groups"]})
        self.steps, self.factor = state["steps"], state["factor"]
        if self.average is not None:
            _copy(state["average"] or self.parameters, self.average)

    @torch.no_grad()
    def _move_average(self, average: list[Tensor], slowest: float) -> None:
        done = self.steps if self.ramp == "steps" else self.steps // self.average_every
        decay = min(slowest, (1 + done) / (10 + done))
        for mean, parameter in zip(average, self.parameters, strict=True):
            mean.lerp_(parameter, 1 - decay)


@torch.no_grad()
def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    for s, t in zip(source, target, strict=True):
        t.copy_(s)


def _rate(step: int, warmup: int, schedule: str, total: int, share: float) -> float:
    """The factor of the learning rate at an optimizer step, counted from 0; share: of the time that is spent."""
    if step < warmup:
        return (step + 1) / warmup
    left = max(0.0, 1 - max((step - warmup) / max(1, total - warmup), share))
    return {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}[schedule]
