"""The walk of a rollout: pass by pass through a tree of segments, drawing, and recording what will be trained.

A row of a pass is one unit for one prompt; rows lie prompt by prompt, units in the order of their front. A step gives
every segment of a unit its next state from the velocity of that row. States are rounded to their storage dtype before
they are scored and passed on, so that what is stored is exactly what was sampled, and a replay at the same batch shape
gives the same log-prob bit for bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowrl.contracts import Progress
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import step_noise
from flowrl.policies.pipelines.steps.dynamics import Dynamics, per_row, scale_std
from flowrl.policies.pipelines.steps.intercepted import EndOfWalk, Step, select_rows
from flowrl.policies.pipelines.walks.trajectory import Streams, Trajectory, flat, positions
from flowrl.policies.pipelines.walks.trajectory_writer import TrajectoryWriter
from flowrl.policies.pipelines.walks.visit_writer import VisitWriter
from samplers.gaussian import Gaussian
from samplers.levels import Level
from samplers.plan import ROOT, Front, Pass, Table, Unit
from samplers.solvers import Solver, solver_step


@dataclass(frozen=True)
class _Group:
    """Outcomes of a step that are computed alike: segments, each of the unit at `units[of]` of the front."""

    table: int
    drawn: bool
    solver: Solver
    units: tuple[int, ...]
    segments: Unit
    of: tuple[int, ...]


class RolloutWalk:
    """See the module's docstring. Passes are begun one by one; `result` comes last.

    keep_means: whether the means drawn from are stored too.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        dynamics: Dynamics,
        streams: Callable[[int], int],
        *,
        progress: Progress | None = None,
        keep_means: bool = False,
    ):
        self.trajectory, self.tree, self.dynamics, self.streams = trajectory, trajectory.tree, dynamics, streams
        self.progress, self.keep_means = progress, keep_means
        self.num_prompts = len(trajectory.prompts)
        self.iterations = 0
        self.records = TrajectoryWriter(trajectory, dynamics)
        self._after: dict[int, Streams] = {}  # by segment: its latest state, [P, ...]
        self._clean: dict[int, dict[int, tuple[Tensor, Level]]] = {}  # by segment: latest prediction of x_0, its level
        self._solves = any(s.solver != "euler" for s in self.tree.segments)
        self.visits = VisitWriter(trajectory, dynamics.storage, solves=self._solves)

    # ------------------------------------------------------------------ passes

    def begin(self, part: Pass) -> None:
        """Sets up the next pass."""
        self._pass, self._flow, self._seen, self._at = part, {}, 0, -1
        last = self.tree.tables[part.table].num_steps(self.tree.num_steps)
        self._first = part.fronts[0].step if part.fronts else last
        self._units = part.fronts[0].units if part.fronts else tuple((i,) for i in part.leaves)

    @property
    def table(self) -> Table:
        """The sigma table of the pass."""
        return self.tree.tables[self._pass.table]

    @property
    def rows(self) -> int:
        """Rows of the pass."""
        return self.num_prompts * len(self._units)

    def leads(self) -> list[tuple[int, int]]:
        """(prompt, segment) that each row of the pass stands for."""
        return [(p, unit[0]) for p in range(self.num_prompts) for unit in self._units]

    def is_real(self, iteration: int) -> bool:
        """Iterations before the pass's first are the recorded ones."""
        return iteration >= self._first

    def skipped_state(self, iteration: int, stream: int) -> Tensor:
        """The states [R, ...] that the pass continues from; if all are stored, those after this iteration."""
        if self.trajectory.complete and iteration + 1 < self._first:
            passed = [self.trajectory.segment_holding(unit[0], iteration) for unit in self._units]
            return flat([self.trajectory.states[i, iteration][stream] for i in passed])
        return self._entry_states(stream)

    def _entry_states(self, stream: int) -> Tensor:
        """States of the pass's rows before its next front."""
        if stream not in self._flow:
            fronts = self._pass.fronts
            self._flow[stream] = self._states(self.tree.sources(fronts[0]) if fronts else self._pass.leaves, stream)
        return self._flow[stream]

    def _states(self, segments: Sequence[int], stream: int) -> Tensor:
        return flat([self._after[i][stream] for i in segments])

    # ------------------------------------------------------------------ steps

    def step(self, step: Step) -> Tensor:
        """The next states [R, ...] of all segments; records those that are trained."""
        front, stream = self._front(step.iteration), step.stream
        sources = self.tree.sources(front)
        if self.tree.levels:
            self.visits.write(step, front)
        if self.tree.keep_noise:
            self.visits.keep_noise(step, front)
        self.records.score_draws(front, stream, step.kept, sources)
        if sources[0] != ROOT:
            self.records.store_entry_states(front, stream, self._entry_states(stream))
        states = {group: self._move(step, front, group, sources) for group in self._groups(front)}
        self._count(step.iteration)
        next_segments = self._next_segments(front)
        if not next_segments:
            if self._seen == self.streams(step.iteration):
                raise EndOfWalk
            return step.x  # the pass ends before these are used
        only = next(iter(states)) if len(states) == 1 else None
        as_drawn = only is not None and only.segments == next_segments
        self._flow[stream] = next(iter(states.values())) if as_drawn else self._states(next_segments, stream)
        return self._flow[stream]

    def _next_segments(self, front: Front) -> Unit:
        """The segments whose states the pass continues with, or finishes; none at its end."""
        at = front.step - self._first + 1
        return self.tree.sources(self._pass.fronts[at]) if at < len(self._pass.fronts) else self._pass.leaves

    def result(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Log-probs [R, K] of the trained steps, mask [R, K] of the decisions that drew, and step_stats, on the CPU.

        Raises PolicyError if the pipeline's loop never reached a trained step.
        """
        self.records.finish()
        self.visits.store_noise()
        if self.tree.levels:
            return self.visits.result(self.iterations, self._states, tuple(self._after[self.tree.leaves[0]]))
        if missing := self.records.missing():
            raise PolicyError(
                f"step {missing[0]} is to be trained, but the pipeline's loop ended after {self.iterations} steps of "
                f"{self.tree.num_steps}: move the window, or raise sampler.steps (image-to-image skips steps)"
            )
        return self.records.result()

    def _front(self, iteration: int) -> Front:
        fronts = self._pass.fronts
        at = iteration - self._first
        if at < len(fronts):
            return fronts[at]
        raise PolicyError(
            f"the pipeline's loop went on to iteration {iteration}, past the {self._first + len(fronts)} of its table"
        )

    def _groups(self, front: Front) -> list[_Group]:
        by_kind: dict[tuple[int, bool, Solver], list[tuple[int, int]]] = {}
        for u, unit in enumerate(front.units):
            for i in unit:
                segment = self.tree.segments[i]
                drawn = front.step in segment.stochastic
                key = (segment.table, drawn, "euler" if drawn else segment.solver)
                by_kind.setdefault(key, []).append((u, i))
        groups = []
        for (table, drawn, solver), pairs in by_kind.items():
            units = tuple(dict.fromkeys(u for u, _ in pairs))
            of = tuple(units.index(u) for u, _ in pairs)
            groups.append(_Group(table, drawn, solver, units, tuple(i for _, i in pairs), of))
        return groups

    def _move(self, step: Step, front: Front, group: _Group, sources: Unit) -> Tensor:
        """The next states [P * segments, ...] of a group."""
        at, stream = step.iteration, step.stream
        if group.table != front.table:
            step = replace(step, s_next=float(self.tree.tables[group.table].levels(step.own)[step.index + 1]))
        if len(group.units) < len(front.units):
            step = select_rows(step, self._index(group.units, len(front.units)))
        if group.solver == "euler":
            gaussian = self.dynamics.gaussian(step, stochastic=group.drawn)
        else:
            gaussian = self._solve(step, group, [sources[u] for u in group.units])
        if self._solves:
            clean = (step.x - step.s * step.v).unflatten(0, (self.num_prompts, -1))
            for i, u in zip(group.segments, group.of, strict=True):
                self._clean.setdefault(i, {})[stream] = (clean[:, u], step.s)
        if self.keep_means and group.drawn:
            self.records.store_means(front, group.units, stream, gaussian.mean)
        if group.of != tuple(range(len(group.units))):
            gaussian = gaussian.rows(self._index(group.of, len(group.units)).to(gaussian.mean.device))
        gaussian = self._scale(gaussian, group.segments, at)
        state = self._draw(gaussian, group.segments, front, stream) if group.drawn else gaussian.mean
        state = state.to(self.dynamics.storage)
        self._keep(state, gaussian, group, step)
        return state

    def _solve(self, step: Step, group: _Group, sources: list[int]) -> Gaussian:
        """A step of a multistep solver, as a Gaussian of std 0."""
        if step.path != "flow" or isinstance(step.s, Tensor):
            raise PolicyError(f"solver {group.solver!r} is for flow-matching tables of one level per step; use euler")
        x, v = step.x.to(self.dynamics.precision), step.v.to(self.dynamics.precision)
        past = [self._clean.get(i, {}).get(step.stream) for i in sources]
        previous = None
        if all(p is not None for p in past):
            previous = (flat([p[0] for p in past if p is not None]), past[0][1])  # pyright: ignore[reportOptionalSubscript]
        mean = solver_step(group.solver, x, x - step.s * v, step.s, step.s_next, previous=previous)
        return Gaussian(mean, mean.new_zeros(()))

    def _scale(self, gaussian: Gaussian, segments: Unit, at: int) -> Gaussian:
        factors = [self.tree.segments[i].scale if self.tree.segments[i].begin == at else 1.0 for i in segments]
        return scale_std(gaussian, factors * self.num_prompts)

    def _draw(self, gaussian: Gaussian, segments: Unit, front: Front, stream: int) -> Tensor:
        """Noise of each row, mixed with the noise that siblings share at the step where they branch."""
        mean, at = gaussian.mean, front.step
        noise = step_noise(self.trajectory.keys(segments), at, stream, mean.shape[1:], mean.device)
        shared = [
            self.tree.segments[i].correlation if self.tree.segments[i].begin == at else 0.0 for i in segments
        ] * self.num_prompts
        if any(shared):
            eldest = {
                i: min(j for j in unit if at in self.tree.segments[j].stochastic)
                for unit in front.units
                for i in unit
                if i in segments
            }
            keys = self.trajectory.keys([eldest[i] for i in segments])
            common = step_noise(keys, at, stream, mean.shape[1:], mean.device, use="siblings")
            share = torch.tensor(shared, device=mean.device).reshape(-1, *(1,) * (mean.dim() - 1))
            noise = share.sqrt() * common + (1 - share).sqrt() * noise
        return gaussian.sample(noise.to(mean.dtype))

    def _keep(self, state: Tensor, gaussian: Gaussian, group: _Group, step: Step) -> None:
        """Stores the latest state of every segment, and the draws that are trained."""
        at, stream = step.iteration, step.stream
        each = state.unflatten(0, (self.num_prompts, -1))
        for j, i in enumerate(group.segments):
            self._after.setdefault(i, {})[stream] = each[:, j]
            if self.trajectory.complete:
                self.trajectory.states.setdefault((i, at), {})[stream] = each[:, j]
        if group.drawn:
            number = len(state)
            step_stats = {0: per_row(gaussian.std, number), 1: per_row(step.s_next - step.s, number)}
            self.records.store_draws(at, stream, group.segments, gaussian, state, step_stats)

    def _count(self, at: int) -> None:
        if at != self._at:
            self._at, self._seen = at, 0
            self.iterations = max(self.iterations, at + 1)
            if self.progress is not None:
                self.progress(self.rows)
        self._seen += 1

    def _index(self, of: Sequence[int], width: int) -> Tensor:
        return positions(of, width, self.num_prompts)
