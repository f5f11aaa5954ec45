"""What turns gradients into better weights: AdamW, its learning rate, gradient clipping, and copies of the weights."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.core.learning.copies import Copies
from flowrl.core.learning.lr_schedules import LR_SCHEDULES
from flowrl.core.learning.optimizers import make_optimizer
from flowrl.core.learning.scaling import LossScale, Masters
from flowrl.core.learning.shards import clip_gradients

RAMPS = ("moves", "steps")
AVERAGE, REFERENCE, OLD = "average", "reference", "old"  # copies of the weights
Schedule = Callable[[float], float]  # share of the run that is left -> factor of the learning rate


class Learner:
    """Optimizer, learning-rate schedule and moving average of some parameters.

    optimizer, eps: see core/learning/optimizers.py. warmup: optimizer steps of linear rise. schedule: of LR_SCHEDULES,
    or a function like them, over `total` steps. average: decay of the moving average (None: none), which moves every
    `average_every` steps and whose decay is at most (1 + n) / (10 + n): n counts its moves (ramp `moves`) or, as in
    Flow-GRPO's code, optimizer steps (ramp `steps`). average_in_host: whether it rests in host memory. reference:
    whether the parameters as they are given are kept as the copy `reference`; old: whether there is an older copy,
    which `keep_old` moves. All state is in `state_dict`. scaled: whether the loss has a factor, see
    core/learning/scaling.py; float16 parameters are moved in float32 in any case. apart: parts of the parameters whose
    gradients are clipped each by itself, together all of them (none: all at once). share: of a run that is limited by
    time, how much of that is spent, set from outside: a schedule is as far as this or the steps say, whichever is
    further. base_lr: what the schedule multiplies, by the number of steps taken; set from outside where it is not `lr`
    all the time.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 1e-4,
        optimizer: str = "adamw",
        eps: float = 1e-8,
        max_grad_norm: float | None = 1.0,
        warmup: int = 0,
        schedule: str | Schedule = "constant",
        total: int = 1,
        average: float | None = None,
        average_every: int = 1,
        ramp: str = "moves",
        reference: bool = False,
        old: bool = False,
        apart: Sequence[Sequence[nn.Parameter]] = (),
        scaled: bool = False,
        average_in_host: bool = False,
    ):
        if ramp not in RAMPS:
            raise ValueError(f"ramp={ramp!r}: choose one of {', '.join(RAMPS)}")
        self.parameters = list(parameters)
        self.scale, self._masters = LossScale() if scaled else None, Masters(self.parameters)
        own = dict(zip(map(id, self.parameters), self._masters.optimized, strict=True))
        self._clipped = [[own[id(p)] for p in part] for part in apart] or [self._masters.optimized]
        self.max_grad_norm, self.average_decay, self.average_every = max_grad_norm, average or 0.0, average_every
        self.ramp = ramp
        how: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        self.optimizer = make_optimizer(optimizer, self._masters.optimized, **how)
        self.copies = Copies(self.parameters, [AVERAGE] if average_in_host else [])
        for name, wanted in ((AVERAGE, average is not None), (REFERENCE, reference), (OLD, old)):
            if wanted:
                self.copies.keep(name)
        self.steps, self.factor, self.share = 0, 1.0, 0.0
        self._old_since = 0  # optimizer step after which the older copy was the parameters; -1: never quite
        self.base_lr: Callable[[int], float] = lambda steps: lr
        self._schedule = lambda steps: _rate(steps, warmup, schedule, total, self.share)

    def step(self) -> Tensor:
        """One optimizer step on the current gradients; returns their norm before clipping, a scalar, and clears them.

        A gradient that is not finite moves nothing: the returned norm shows it.
        """
        self._masters.take_gradients(self.loss_scale)
        norms = [clip_gradients(part, self.max_grad_norm or math.inf) for part in self._clipped]
        norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
        if torch.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr
            self.optimizer.step()
            self._masters.give_back()
            self.steps += 1
            if AVERAGE in self.copies and self.steps % self.average_every == 0:
                done = self.steps if self.ramp == "steps" else self.steps // self.average_every
                self.copies.keep(AVERAGE, min(self.average_decay, (1 + done) / (10 + done)))
        self.optimizer.zero_grad()
        if self.scale is not None:
            self.scale.observe(bool(torch.isfinite(norm)))
        return norm.detach()

    @property
    def loss_scale(self) -> float:
        """What the next step's loss is to be multiplied by."""
        return 1.0 if self.scale is None else self.scale.factor

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.factor * (self.base_lr(self.steps) * self._schedule(self.steps))

    def lower(self, factor: float) -> None:
        """Multiplies every later learning rate, that of the next step included, by `factor` in (0, 1]."""
        if not 0 < factor <= 1:
            raise ValueError(f"factor={factor}: a learning rate is lowered by a factor in (0, 1]")
        self.factor *= factor

    @property
    def average(self) -> list[Tensor] | None:
        """The moving average of every parameter, of the same shape, if one is kept."""
        return self.copies[AVERAGE] if AVERAGE in self.copies else None

    def reset(self, names: Sequence[str]) -> None:
        """Begins anew with the parameters as they are: the moments of the optimizer, or a copy of the weights.

        names: of optimizer, reference, average and old. A reference may be kept from here on; of the others, what is
        not kept stays so.
        """
        for name in names:
            if name == "optimizer":
                self.optimizer.state.clear()
            elif name == OLD and OLD in self.copies:
                self.keep_old(0.0)
            elif name == REFERENCE or name in self.copies:
                self.copies.keep(name)

    def keep_old(self, decay: float) -> None:
        """Moves the older copy to decay * copy + (1 - decay) * parameters."""
        self.copies.keep(OLD, decay)
        self._old_since = self.steps if decay == 0 else -1

    @property
    def unmoved(self) -> frozenset[str]:
        """Copies that are the parameters themselves: looks under them need not be taken."""
        return frozenset([OLD] if OLD in self.copies and self._old_since == self.steps else [])

    @contextlib.contextmanager
    def sampling(self, *, old: bool) -> Iterator[None]:
        """Within, without gradient, the parameters hold their older copy where `old` says so."""
        with torch.no_grad(), self.copies.using(OLD) if old else contextlib.nullcontext():
            yield

    def using_average(self) -> contextlib.AbstractContextManager[None]:
        """Within, the parameters hold their moving average, where one is kept. See `Copies.using`."""
        return self.copies.using(AVERAGE) if AVERAGE in self.copies else contextlib.nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes as it learns, but the parameters. Hyper-parameters are the recipe's, not state."""
        return {
            "moments": self.optimizer.state_dict()["state"],
            "copies": self.copies.state_dict(),
            "steps": self.steps,
            "factor": self.factor,
            "old_since": self._old_since,
            "masters": self._masters.state(),
            "scale": {} if self.scale is None else self.scale.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state.

        An average or older copy that was not kept before begins at the parameters of now; a reference stays what it is.
        """
        own = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": state["moments"], "param_groups": own["param_groups"]})
        self.steps, self.factor = state["steps"], state["factor"]
        self._old_since = state.get("old_since", self.steps)
        self._masters.load(state.get("masters") or [])
        if self.scale is not None and state.get("scale"):
            self.scale.load_state_dict(state["scale"])
        for name in (AVERAGE, OLD):
            if name in self.copies:
                self.copies.keep(name)
        if REFERENCE in saved_copies(state):  # of a phase of the run, which set it anew
            self.copies.keep(REFERENCE)
        self.copies.load_state_dict(saved_copies(state))


def saved_copies(state: Mapping[str, Any]) -> dict[str, list[Tensor]]:
    """The copies in a learner's saved state, each of the same shape as its parameter; earlier checkpoints hold only the
    average, or None."""
    if "copies" in state:
        return state["copies"]
    return {AVERAGE: state["average"]} if state["average"] else {}


def _rate(step: int, warmup: int, schedule: str | Schedule, total: int, share: float) -> float:
    """The factor of the learning rate at an optimizer step, counted from 0; share: of the time that is spent."""
    if step < warmup:
        return (step + 1) / warmup
    left = max(0.0, 1 - max((step - warmup) / max(1, total - warmup), share))
    return LR_SCHEDULES[schedule](left) if isinstance(schedule, str) else schedule(left)
