"""Sigma tables derived from the pipeline's own: the `Table` of a plan, as data. The levels are made in `schedules`.

`levels` takes the pipeline's own levels, float32 [own + 1], and returns float32 [num_steps(own) + 1].
Raised anywhere here: ValueError for settings that leave no table, naming them and what is accepted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from samplers import schedules
from samplers.plan import OwnTable, Table


@dataclass(frozen=True, slots=True)
class Linear:
    """Equally spaced levels from 1 to 0, as many steps as the pipeline's own table has."""

    def num_steps(self, own: int) -> int:
        """See `Table`."""
        return own

    def levels(self, own: Tensor) -> Tensor:
        """Float32 [num_steps + 1]; see `Table`."""
        return schedules.linear(own.numel() - 1).to(own.device)


@dataclass(frozen=True, slots=True)
class Shifted:
    """`schedules.shifted`. shift: > 0; 1 is `Linear`, 3 that of DanceGRPO and MixGRPO on FLUX."""

    shift: Annotated[float, "> 0"]

    def __post_init__(self) -> None:
        _require(self.shift > 0, f"shift={self.shift}: give a number above 0")

    def num_steps(self, own: int) -> int:
        """See `Table`."""
        return own

    def levels(self, own: Tensor) -> Tensor:
        """Float32 [num_steps + 1]; see `Table`."""
        return schedules.shifted(own.numel() - 1, self.shift).to(own.device)


@dataclass(frozen=True, slots=True)
class Exponential:
    """`schedules.exponential`. mu: log of the shift; `schedules.calculate_shift_mu` takes it from the resolution."""

    mu: float

    def num_steps(self, own: int) -> int:
        """See `Table`."""
        return own

    def levels(self, own: Tensor) -> Tensor:
        """Float32 [num_steps + 1]; see `Table`."""
        return schedules.exponential(own.numel() - 1, self.mu).to(own.device)


@dataclass(frozen=True, slots=True)
class At:
    """Two steps, of which the second begins at a level: there a model can be asked about any state.

    level: of the table's own kind, above 0. The first begins where the own table does, or just above the level.
    begins: given, the own table with the level in place of the one above it, for pipelines that count their steps:
    they walk from step `begins` on, and the level is at `place`, the second of these at the earliest.
    """

    level: float
    begins: int | None = None

    def __post_init__(self) -> None:
        _require(self.level > 0, f"level={self.level}: give a number above 0")

    def num_steps(self, own: int) -> int:
        """See `Table`."""
        return 2 if self.begins is None else own

    def place(self, own: Tensor) -> int:
        """The step that begins at the level, of the table that replaces the own levels, 1-D [N + 1]."""
        if self.begins is None:
            return 1
        return max(int((own[:-1] > self.level - 1e-6).sum()) - 1, self.begins + 1)

    def levels(self, own: Tensor) -> Tensor:
        """Float32 [num_steps + 1]; see `Table`."""
        before = max(float(own[0]), self.level + 5e-4)
        if self.begins is None:
            return own.new_tensor([before, self.level, 0.0])
        levels, at = own.clone(), self.place(own)
        levels[at] = self.level
        if float(own[at - 1]) <= self.level:
            levels[at - 1] = self.level + 5e-4
        return levels


@dataclass(frozen=True, slots=True)
class Karras:
    """`schedules.karras` between the ends of `base`. rho: > 0."""

    rho: Annotated[float, "> 0"] = 7.0
    base: Table = OwnTable()

    def __post_init__(self) -> None:
        _require(self.rho > 0, f"rho={self.rho}: give a number above 0")

    def num_steps(self, own: int) -> int:
        """See `Table`."""
        return self.base.num_steps(own)

    def levels(self, own: Tensor) -> Tensor:
        """Float32 [num_steps + 1]; see `Table`."""
        return schedules.karras(self.base.levels(own), self.rho)


@dataclass(frozen=True, slots=True)
class Merged:
    """`schedules.merge_steps`: steps begin to begin + count - 1 of `base` become step `begin`."""

    base: Table
    begin: int
    count: int

    def __post_init__(self) -> None:
        _require(self.begin >= 0 and self.count >= 1, f"begin={self.begin}, count={self.count}: give 0 and 1, or more")

    def num_steps(self, own: int) -> int:
        """See `Table`."""
        steps = self.base.num_steps(own)
        last = self.begin + self.count - 1
        _require(
            last < steps, f"steps {self.begin} to {last} are to become one of {steps}: end at {steps - 1} or before"
        )
        return steps - self.count + 1

    def levels(self, own: Tensor) -> Tensor:
        """Float32 [num_steps + 1]; see `Table`."""
        self.num_steps(own.numel() - 1)
        return schedules.merge_steps(self.base.levels(own), self.begin, self.count)


@dataclass(frozen=True, slots=True)
class Coarse:
    """`schedules.coarse`: after level number `after` of `base` its every `every`-th alone, then 0."""

    after: int
    every: int
    base: Table = OwnTable()

    def __post_init__(self) -> None:
        _require(self.after >= 0 and self.every >= 1, f"after={self.after}, every={self.every}: give 0 and 1, or more")

    def num_steps(self, own: int) -> int:
        """See `Table`."""
        steps = self.base.num_steps(own)
        _require_tail(self.after, steps)
        return self.after - (self.after - steps) // self.every  # rounded up: the 0 is a step of its own

    def levels(self, own: Tensor) -> Tensor:
        """Float32 [num_steps + 1]; see `Table`."""
        self.num_steps(own.numel() - 1)
        return schedules.coarse(self.base.levels(own), self.after, self.every)


@dataclass(frozen=True, slots=True)
class Compressed:
    """`schedules.compress_tail`: after level number `after` of `base` there are `steps` steps to 0.

    For the ratio of MixGRPO-Flash see `schedules.flash_steps`.
    """

    after: int
    steps: int
    base: Table = OwnTable()

    def __post_init__(self) -> None:
        _require(self.after >= 0 and self.steps >= 1, f"after={self.after}, steps={self.steps}: give 0 and 1, or more")

    def num_steps(self, own: int) -> int:
        """See `Table`."""
        _require_tail(self.after, self.base.num_steps(own))
        return self.after + self.steps

    def levels(self, own: Tensor) -> Tensor:
        """Float32 [num_steps + 1]; see `Table`."""
        self.num_steps(own.numel() - 1)
        return schedules.compress_tail(self.base.levels(own), self.after, self.steps)


@dataclass(frozen=True, slots=True)
class Given:
    """The table that a function of the pipeline's own levels gives: as many, falling, and 0 at the end."""

    function: Callable[[Tensor], Tensor]

    def num_steps(self, own: int) -> int:
        """See `Table`."""
        return own

    def levels(self, own: Tensor) -> Tensor:
        """Float32 [own + 1]; see `Table`. Raises ValueError for levels of another shape, or that do not fall to 0."""
        levels = self.function(own)
        sound = isinstance(levels, Tensor) and levels.shape == own.shape and bool((levels.diff() < 0).all())
        _require(
            sound and float(levels[-1]) == 0,
            f"a table of {own.numel()} levels that fall to 0 is wanted, one more than there are steps",
        )
        return levels.to(own)


def own() -> OwnTable:
    """The levels of the pipeline's own scheduler."""
    return OwnTable()


# kind of schedule in a recipe -> its function or class, whose arguments are its keys
SCHEDULES = {"own": own, "linear": Linear, "shifted": Shifted, "exponential": Exponential, "karras": Karras}


def cap(table: Table, own: Tensor) -> float:
    """The `s_cap` of a walk along a table: its second level, before any steps of its beginning were merged.

    own: the pipeline's levels, 1-D [N + 1]. A merged first step is as strong as the steps it stands for, as in E-GRPO:
    three of 16 at shift 3 and noise 0.7 have std 1.27. Capped at the merged table's own second level it would have that
    of one step, `noise`, however many it covers.
    """
    while isinstance(table, Merged | Compressed) or (isinstance(table, Coarse) and table.after > 0):
        table = table.base
    return float(table.levels(own)[1])


def _require_tail(after: int, steps: int) -> None:
    _require(after < steps, f"after={after} leaves no step of {steps} to the tail: give {steps - 1} or less")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
