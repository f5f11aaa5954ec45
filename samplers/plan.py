"""The walks of one prompt's samples, as data: segments of steps that grow out of each other like the edges of a tree.

A plan's `tree(group)` returns the segments for `group` samples that are compared with each other. The policy walks them
and knows no method. A straight walk is a tree too: one segment per sample, behind a trunk where the group shares one.

What may be shared is decided here alone: segments that begin at the same step with the same state form a unit, which
costs one row of the denoiser, in the rollout and in training.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from torch import Tensor

from samplers.checks import require_levels, require_steps
from samplers.solvers import SOLVERS, Solver
from samplers.visits import Column

ROOT = -1  # the parent of a segment that begins at initial noise
CREDITS = ("uniform", "path_probability")


class Table(Protocol):
    """A sigma table made of the pipeline's own, which is known only once the pipeline runs."""

    def num_steps(self, own: int) -> int:
        """How many steps it has where the pipeline's own has `own`."""
        ...

    def levels(self, own: Tensor) -> Tensor:
        """Its levels, float32 [num_steps + 1], falling to 0, from the pipeline's own of float32 [own + 1]."""
        ...


@dataclass(frozen=True, slots=True)
class OwnTable:
    """The pipeline's own table."""

    def num_steps(self, own: int) -> int:
        """See `Table`."""
        return own

    def levels(self, own: Tensor) -> Tensor:
        """Float32 [own + 1], unchanged."""
        return own


@dataclass(frozen=True, slots=True)
class Segment:
    """A chain of steps [begin, end) that one latent walks along one sigma table.

    parent: the segment (by position) whose last state it goes on from; ROOT: initial noise number `start`.
    stochastic: its steps that draw noise, trained: those of them the loss sees; the others follow the ODE by `solver`.
    member: whose noise its steps draw; no two segments of a tree that draw at one step have the same. table: position
    in Tree.tables; up to level number `begin` it agrees with the parent's. A segment that ends where its table ends is
    a leaf, a finished sample.
    scale: factor of the std of its first step, where that draws. correlation: between the draws of that step of all
    segments of its unit, in [0, 1).
    peers: number shared by segments whose values are compared with each other. view: of a leaf, which of the tree's
    views its reward belongs to (see `flowrl.core.advantages.rows`).
    """

    parent: int
    begin: int
    end: int
    stochastic: tuple[int, ...] = ()
    trained: tuple[int, ...] = ()
    member: int = 0
    start: int = 0
    table: int = 0
    solver: Solver = "euler"
    scale: float = 1.0
    correlation: float = 0.0
    peers: int = 0
    view: int = 0


Unit = tuple[int, ...]  # positions of segments that share one state: one row of the denoiser


@dataclass(frozen=True, slots=True)
class Front:
    """What runs at one step of one table."""

    table: int
    step: int
    units: tuple[Unit, ...]


@dataclass(frozen=True, slots=True)
class Pass:
    """Fronts of consecutive steps whose rows stay the same: one call of the pipeline.

    leaves: the samples that this call finishes. A pass without fronts only finishes leaves.
    """

    table: int
    fronts: tuple[Front, ...]
    leaves: Unit = ()

    @property
    def rows(self) -> int:
        """Rows of the call, for one prompt."""
        return len(self.fronts[0].units) if self.fronts else len(self.leaves)


@dataclass(frozen=True)
class Tree:
    """The segments of one prompt, parents before children. num_steps: of the pipeline's own table.

    credit: how leaves reach inner segments, uniform or path_probability. by_row False: the samples of a prompt are
    compared with each other and a row gets the mean of its leaves' advantages; True: the mean rewards of rows are
    compared with those of their peers. levels: where no step is trained, those that finished samples are noised to and
    looked at again, one a column of the rollout, whose rows the leaves then are: a noise level, the number of the step
    whose level it is, or what visits.py has. keep_noise: the noise that the walks begin with is kept.

    Raises ValueError for segments that cannot be walked.
    """

    num_steps: int
    segments: tuple[Segment, ...]
    tables: tuple[Table, ...] = field(default_factory=lambda: (OwnTable(),))
    credit: str = "uniform"
    by_row: bool = True
    levels: tuple[Column, ...] = ()
    keep_noise: bool = False

    def __post_init__(self) -> None:
        if self.credit not in CREDITS:
            raise ValueError(f"credit={self.credit!r}: choose one of {', '.join(CREDITS)}")
        for i, segment in enumerate(self.segments):
            if problem := self._problem(i, segment):
                raise ValueError(f"segment {i} of the tree, steps [{segment.begin}, {segment.end}): {problem}")
        drawn = [(s.member, step) for s in self.segments for step in s.stochastic]
        if len(set(drawn)) < len(drawn):
            raise ValueError("two segments of the tree draw the same noise: give each a member of its own")
        if not self.leaves:
            raise ValueError("no segment reaches the end of its table: there is no finished sample")

    def _problem(self, position: int, segment: Segment) -> str | None:
        steps = set(range(segment.begin, segment.end))
        last = self.tables[segment.table].num_steps(self.num_steps)
        if not 0 <= segment.begin < segment.end <= last:
            return f"it does not lie within the {last} steps of its table"
        if not set(segment.trained) <= set(segment.stochastic) <= steps:
            return f"trained {segment.trained} and stochastic {segment.stochastic} are not among its steps"
        if segment.trained and segment.table != 0:
            return "only steps of the first table can be trained"
        if isinstance(segment.solver, str) and segment.solver not in SOLVERS:
            return f"solver {segment.solver!r} is not one of {', '.join(SOLVERS)}"
        if segment.parent == ROOT:
            return None if segment.begin == 0 else "it has no parent, so it has to begin at step 0"
        if not 0 <= segment.parent < position or self.segments[segment.parent].end != segment.begin:
            return f"parent {segment.parent} does not stand before it and end where it begins"
        return None

    @cached_property
    def _hash(self) -> int:
        return hash((self.num_steps, self.segments, self.tables, self.credit, self.by_row, self.levels))

    def __hash__(self) -> int:  # computed once: trees are looked up at every step
        return self._hash

    # ------------------------------------------------------------------ rows, leaves, decisions

    @cached_property
    def rows(self) -> Unit:
        """The trainable segments: rows of a rollout."""
        return tuple(i for i, s in enumerate(self.segments) if s.trained)

    @cached_property
    def leaves(self) -> Unit:
        """The segments that end in finished samples."""
        ends = [table.num_steps(self.num_steps) for table in self.tables]
        return tuple(i for i, s in enumerate(self.segments) if s.end == ends[s.table])

    @cached_property
    def trained(self) -> tuple[int, ...]:
        """The steps at which any row is trained: columns of a rollout."""
        return tuple(sorted({step for s in self.segments for step in s.trained}))

    @cached_property
    def members(self) -> int:
        """How many members there are: the number of noises that one prompt uses."""
        return 1 + max(max(s.member, s.start) for s in self.segments)

    def path(self, segment: int) -> Unit:
        """The segments from the root to this one."""
        chain = [segment]
        while self.segments[chain[-1]].parent != ROOT:
            chain.append(self.segments[chain[-1]].parent)
        return tuple(reversed(chain))

    # ------------------------------------------------------------------ what runs when

    @cached_property
    def fronts(self) -> tuple[Front, ...]:
        """All that runs: table by table and step by step, what leads to decisions before what only finishes samples.

        The rows of a decision's step are therefore those of its replay, and a trunk is one call whatever its branches.
        """
        fronts = []
        for table in range(len(self.tables)):
            units_at: dict[tuple[bool, int], list[Unit]] = {}
            for unit in self._beginnings():
                begin = self.segments[unit[0]].begin
                if min(self.segments[i].table for i in unit) == table:
                    units_at.setdefault((begin > max(self._last_trained[i] for i in unit), begin), []).append(unit)
                for i in unit:
                    if self.segments[i].table == table:
                        for step in range(begin + 1, self.segments[i].end):
                            units_at.setdefault((step > self._last_trained[i], step), []).append((i,))
            fronts += [Front(table, step, tuple(sorted(units_at[late, step]))) for late, step in sorted(units_at)]
        return tuple(fronts)

    @cached_property
    def _last_trained(self) -> list[int]:
        """The last trained step of each segment and what grows out of it, -1 for none."""
        last = [max(s.trained, default=-1) for s in self.segments]
        for i in reversed(range(len(last))):
            if self.segments[i].parent != ROOT:
                last[self.segments[i].parent] = max(last[self.segments[i].parent], last[i])
        return last

    def _beginnings(self) -> Iterable[Unit]:
        units: dict[tuple[int, int], list[int]] = {}
        for i, segment in enumerate(self.segments):
            units.setdefault((segment.parent, segment.start if segment.parent == ROOT else 0), []).append(i)
        return map(tuple, units.values())

    def passes(self, max_rows: int | None = None) -> Iterator[Pass]:
        """The calls of the pipeline that walk the tree, in order, of at most `max_rows` rows a prompt."""
        runs: list[list[Front]] = []
        for front in self.fronts:
            if runs and self._continues(runs[-1][-1], front):
                runs[-1].append(front)
            else:
                runs.append([front])
        for run in runs:
            for part in _cut(len(run[0].units), max_rows):
                fronts = tuple(Front(f.table, f.step, f.units[part]) for f in run)
                yield from self._with_leaves(fronts, max_rows)

    def _continues(self, front: Front, after: Front) -> bool:
        """Whether each row of a front is a row of the next, so that one call can hold both."""
        if (front.table, front.step + 1, len(front.units)) != (after.table, after.step, len(after.units)):
            return False
        return all(source in unit for unit, source in zip(front.units, self.sources(after), strict=True))

    def sources(self, front: Front) -> Unit:
        """The segment whose latest state each unit of a front starts from; ROOT for initial noise."""
        first = [(unit[0], self.segments[unit[0]]) for unit in front.units]
        return tuple(i if segment.begin < front.step else segment.parent for i, segment in first)

    def _with_leaves(self, fronts: tuple[Front, ...], max_rows: int | None) -> Iterator[Pass]:
        units, ended = fronts[-1].units, self._ended_in(fronts[-1])
        whole = ended == tuple(unit[0] for unit in units) and all(len(unit) == 1 for unit in units)
        # otherwise nothing ends here, the last step fans out, or leaves belong to another table, as those before it do
        yield Pass(fronts[-1].table, fronts, ended if whole else ())
        ended = tuple(i for front in fronts[:-1] for i in self._ended_in(front)) + (() if whole else ended)
        for other in range(len(self.tables)):
            leaves = tuple(i for i in ended if self.segments[i].table == other)
            for part in _cut(len(leaves), max_rows):
                yield Pass(other, (), leaves[part])

    def _ended_in(self, front: Front) -> Unit:
        """The leaves whose last step is that of a front."""
        ended = {i for i in self.leaves if self.segments[i].end == front.step + 1}
        return tuple(i for unit in front.units for i in unit if i in ended)


def _cut(number: int, size: int | None) -> Iterator[slice]:
    return (slice(i, i + (size or number)) for i in range(0, number, max(size or number, 1)))


@dataclass(frozen=True, slots=True)
class Plan:
    """A straight walk: the role of every step in one iteration.

    stochastic: steps that draw noise, the others follow the ODE. trained: those of them the loss sees. share_noise: all
    members of a group start from one latent. table: of the walk. tail: a cheaper table for the steps after the last
    stochastic one, walked by `solver`; without, `solver` is that of all steps after it. levels, keep_noise: see `Tree`.

    Raises ValueError unless both are sorted and unique, lie in [0, num_steps), trained is part of stochastic, and
    trained is empty only for a pure ODE walk; for levels that no sample can be noised to, or beside trained steps.
    """

    num_steps: int
    stochastic: tuple[int, ...]
    trained: tuple[int, ...]
    share_noise: bool = False
    table: Table = OwnTable()
    tail: Table | None = None
    solver: Solver = "euler"
    levels: tuple[Column, ...] = ()
    keep_noise: bool = False

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps={self.num_steps} leaves no step: give 1 or more")
        steps = self.table.num_steps(self.num_steps)
        require_steps("stochastic", self.stochastic, steps)
        require_steps("trained", self.trained, steps)
        if extra := sorted(set(self.trained) - set(self.stochastic)):
            raise ValueError(f"trained steps {extra} draw no noise: add them to stochastic or drop them")
        if self.stochastic and not self.trained:
            raise ValueError(f"trained=() but steps {self.stochastic} draw noise: train some or draw at none")
        require_levels(self.levels, steps, drawn=bool(self.stochastic or self.share_noise))

    def tree(self, group: int) -> Tree:
        """The walks of `group` samples: a segment a sample, behind a trunk where they share their noise."""
        steps = self.table.num_steps(self.num_steps)
        fan = self.stochastic[0] if self.share_noise and self.stochastic else 0
        split = self.stochastic[-1] + 1 if self.stochastic else 0
        has_tail = self.tail is not None or self.solver != "euler"
        segments = [Segment(ROOT, 0, fan)] if fan else []
        for i in range(group):
            parent, start = (0, 0) if fan else (ROOT, 0 if self.share_noise else i)
            end = split if has_tail and split else steps
            solver = self.solver if not split else "euler"
            body = Segment(parent, fan, end, self.stochastic, self.trained, member=i, start=start, solver=solver)
            segments.append(body)
            if end < steps:
                table, last = (0, steps) if self.tail is None else (1, self.tail.num_steps(self.num_steps))
                tail = Segment(len(segments) - 1, end, last, member=i, start=start, table=table, solver=self.solver)
                segments.append(tail)
        tables = (self.table,) if self.tail is None else (self.table, self.tail)
        return Tree(self.num_steps, tuple(segments), tables, levels=self.levels, keep_noise=self.keep_noise)
