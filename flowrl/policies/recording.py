"""The walk of a rollout: pass by pass through a tree of segments, drawing, and recording what will be trained.

A row of a pass is one unit for one prompt; rows lie prompt by prompt, units in the order of their front. A step gives
every segment of a unit its next state from the one velocity of that row. States are rounded to their storage dtype
before they are scored and handed on, so that what is stored is exactly what was sampled, and a replay at the same batch
shape gives the same log-prob bit for bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowrl.policies.dynamics import Dynamics, per_row, scaled
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import step_noise
from flowrl.policies.scheduler import Leave, Step, rows_of
from flowrl.policies.tape import Decisions, Streams, Tape, decisions
from samplers.gaussian import Gaussian, reduced
from samplers.plan import ROOT, Front, Pass, Table, Unit
from samplers.solvers import solver_step


@dataclass(frozen=True)
class _Group:
    """Outcomes of a step that are computed alike: segments, each of the unit at `units[of]` of the front."""

    table: int
    drawn: bool
    solver: str
    units: tuple[int, ...]
    segments: Unit
    of: tuple[int, ...]


@dataclass
class _Pending:
    """Draws of a trained step that are not scored yet: it is not known whether the pipeline overwrites some."""

    at: int
    segments: Unit
    gaussian: Gaussian  # [P * segments, ...]
    drawn: Tensor


class Recording:
    """See the module's docstring. Passes are begun one by one; `result` is for the end.

    keep_means: whether the means drawn from are stored too.
    """

    def __init__(
        self,
        tape: Tape,
        dynamics: Dynamics,
        streams: Callable[[int], int],
        *,
        tick: Callable[[int], None] | None = None,
        keep_means: bool = False,
    ):
        self.tape, self.tree, self.dynamics, self.streams = tape, tape.tree, dynamics, streams
        self.tick, self.keep_means = tick, keep_means
        self.num_prompts = len(tape.prompts)
        self.layout: dict[int, Decisions] = decisions(tape.tree)
        self.iterations = 0
        self._row = {segment: j for j, segment in enumerate(self.tree.rows)}
        self._after: dict[int, Streams] = {}  # by segment: its latest state, [P, ...]
        self._clean: dict[int, dict[int, tuple[Tensor, float]]] = {}  # by segment: latest prediction of x_0, its level
        self._solves = any(s.solver != "euler" for s in self.tree.segments)
        self._pending: dict[int, list[_Pending]] = {}
        self._masks: dict[int, Streams] = {}  # by segment: which elements its last step started from were kept
        self._pieces: dict[tuple[str, int, int], list[tuple[Sequence[int], Tensor]]] = {}
        self._sums: dict[str, Tensor] = {}
        self._scored: set[int] = set()

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

    def entering(self, iteration: int, stream: int) -> Tensor:
        """The states that the pass goes on from; where all are stored, those after this iteration."""
        if self.tape.complete and iteration + 1 < self._first:
            passed = [self.tape.passed(unit[0], iteration) for unit in self._units]
            return _flat([self.tape.states[i, iteration][stream] for i in passed])
        return self._entered(stream)

    def _entered(self, stream: int) -> Tensor:
        """States of the pass's rows before its first front."""
        if stream not in self._flow:
            sources = self._sources(self._units, self._first)
            self._flow[stream] = _flat([self._after[i][stream] for i in sources])
        return self._flow[stream]

    def _sources(self, units: Sequence[Unit], step: int) -> list[int]:
        """The segment whose latest state each unit starts from at a step; ROOT for initial noise."""
        segments = self.tree.segments
        return [unit[0] if segments[unit[0]].begin < step else segments[unit[0]].parent for unit in units]

    # ------------------------------------------------------------------ steps

    def step(self, step: Step) -> Tensor:
        """The next states of all segments; records those that are trained."""
        front, stream = self._front(step.iteration), step.stream
        sources = self._sources(front.units, step.iteration)
        self._settle(stream, step.kept, sources)
        self._note_mask(front, step)
        if sources[0] != ROOT:
            self._store_entered(front, stream, self._entered(stream))
        states = {group: self._move(step, front, group, sources) for group in self._groups(front)}
        self._count(step.iteration)
        is_last = front.step == self._pass.fronts[-1].step and not self._pass.leaves
        if is_last:
            if self._seen == self.streams(step.iteration):
                raise Leave
            return step.x  # the pass ends before anything is made of these
        self._flow[stream] = self._in_order(states, len(front.units))
        return self._flow[stream]

    def finish(self) -> None:
        """Scores what no later step showed to be overwritten or not: as the step before it was."""
        for stream, waiting in self._pending.items():
            for record in waiting:
                masks = [self._masks.get(i, {}).get(stream) for i in record.segments]
                kept = None if any(m is None for m in masks) else _flat([m for m in masks if m is not None])
                self._score(record, stream, kept)
        self._pending.clear()
        for name, at, stream in self._pieces:
            pieces = self._pieces[name, at, stream]
            if name == "keep":
                pieces = self._completed(pieces, at, stream)
            getattr(self.tape, name).setdefault(at, {})[stream] = self._whole(pieces)
        self._pieces.clear()

    def _front(self, iteration: int) -> Front:
        fronts = self._pass.fronts
        at = iteration - self._first
        if at < len(fronts):
            return fronts[at]
        raise PolicyError(
            f"the pipeline's loop went on to iteration {iteration}, past the {self._first + len(fronts)} of its table"
        )

    def _groups(self, front: Front) -> list[_Group]:
        found: dict[tuple[int, bool, str], list[tuple[int, int]]] = {}
        for u, unit in enumerate(front.units):
            for i in unit:
                segment = self.tree.segments[i]
                drawn = front.step in segment.stochastic
                key = (segment.table, drawn, "euler" if drawn else segment.solver)
                found.setdefault(key, []).append((u, i))
        groups = []
        for (table, drawn, solver), pairs in found.items():
            units = tuple(dict.fromkeys(u for u, _ in pairs))
            of = tuple(units.index(u) for u, _ in pairs)
            groups.append(_Group(table, drawn, solver, units, tuple(i for _, i in pairs), of))
        return groups

    def _move(self, step: Step, front: Front, group: _Group, sources: list[int]) -> Tensor:
        """The next states [P * segments, ...] of a group."""
        at, stream = step.iteration, step.stream
        if group.table != front.table:
            step = replace(step, s_next=float(self.tree.tables[group.table].levels(step.own)[step.index + 1]))
        if len(group.units) < len(front.units):
            step = rows_of(step, self._index(group.units, len(front.units)))
        if group.solver == "euler":
            gaussian = self.dynamics.gaussian(step, stochastic=group.drawn)
        else:
            gaussian = self._solved(step, group, [sources[u] for u in group.units])
        if self._solves:
            clean = (step.x - step.s * step.v).unflatten(0, (self.num_prompts, -1))
            for i, u in zip(group.segments, group.of, strict=True):
                self._clean.setdefault(i, {})[stream] = (clean[:, u], step.s)
        if self.keep_means and group.drawn and at in self.layout:
            self._store_means(group, front, gaussian.mean, stream)
        if group.of != tuple(range(len(group.units))):
            gaussian = gaussian.rows(self._index(group.of, len(group.units)).to(gaussian.mean.device))
        gaussian = self._scaled(gaussian, group.segments, at)
        state = self._draw(gaussian, group.segments, front, stream) if group.drawn else gaussian.mean
        state = state.to(self.dynamics.storage)
        self._keep(state, gaussian, group, step)
        return state

    def _solved(self, step: Step, group: _Group, sources: list[int]) -> Gaussian:
        """A step of a multistep solver, as a Gaussian of std 0."""
        if step.path != "flow" or isinstance(step.s, Tensor):
            raise PolicyError(f"solver {group.solver!r} serves flow-matching tables of one level a step; use euler")
        x, v = step.x.to(self.dynamics.precision), step.v.to(self.dynamics.precision)
        past = [self._clean.get(i, {}).get(step.stream) for i in sources]
        previous = None
        if all(p is not None for p in past):
            previous = (_flat([p[0] for p in past if p is not None]), past[0][1])  # pyright: ignore[reportOptionalSubscript]
        mean = solver_step(group.solver, x, x - step.s * v, step.s, step.s_next, previous=previous)
        return Gaussian(mean, mean.new_zeros(()))

    def _scaled(self, gaussian: Gaussian, segments: Unit, at: int) -> Gaussian:
        factors = [self.tree.segments[i].scale if self.tree.segments[i].begin == at else 1.0 for i in segments]
        return scaled(gaussian, factors * self.num_prompts)

    def _draw(self, gaussian: Gaussian, segments: Unit, front: Front, stream: int) -> Tensor:
        """Own noise, mixed with what siblings share at the step where they part."""
        mean, at = gaussian.mean, front.step
        noise = step_noise(self.tape.keys(segments), at, stream, mean.shape[1:], mean.device)
        shared = [
            self.tree.segments[i].correlation if self.tree.segments[i].begin == at else 0.0 for i in segments
        ] * self.num_prompts
        if any(shared):
            eldest = {i: min(j for j in unit if at in self.tree.segments[j].stochastic)
                      for unit in front.units for i in unit if i in segments}  # fmt: skip
            keys = self.tape.keys([eldest[i] for i in segments])
            common = step_noise(keys, at, stream, mean.shape[1:], mean.device, use="siblings")
            share = torch.tensor(shared, device=mean.device).reshape(-1, *(1,) * (mean.dim() - 1))
            noise = share.sqrt() * common + (1 - share).sqrt() * noise
        return gaussian.sample(noise.to(mean.dtype))

    def _keep(self, state: Tensor, gaussian: Gaussian, group: _Group, step: Step) -> None:
        """Remembers where every segment stands, and the draws that are trained."""
        at, stream = step.iteration, step.stream
        each = state.unflatten(0, (self.num_prompts, -1))
        for j, i in enumerate(group.segments):
            self._after.setdefault(i, {})[stream] = each[:, j]
            if self.tape.complete:
                self.tape.states.setdefault((i, at), {})[stream] = each[:, j]
        trained = [j for j, i in enumerate(group.segments) if at in self.tree.segments[i].trained]
        if not trained:
            return
        segments = tuple(group.segments[j] for j in trained)
        if len(trained) < len(group.segments):
            index = self._index(trained, len(group.segments)).to(state.device)
            gaussian, state = gaussian.rows(index), state[index]
        self._piece("drawn", at, stream, [self.layout[at].rows.index(self._row[i]) for i in segments], state)
        self._pending.setdefault(stream, []).append(_Pending(at, segments, gaussian, state))
        if stream == 0:
            rows, column = [self._row[i] for i in segments], self.tree.trained.index(at)
            self._put("std", rows, column, per_row(gaussian.std, len(state)))
            self._put("dt", rows, column, per_row(step.s_next - step.s, len(state)))

    def _in_order(self, states: dict[_Group, Tensor], num_units: int) -> Tensor:
        """The states of a front that goes on, a row a unit."""
        if len(states) == 1:
            return next(iter(states.values()))
        first = next(iter(states.values()))
        whole = first.new_empty((self.num_prompts, num_units, *first.shape[1:]))
        for group, state in states.items():
            whole[:, list(group.units)] = state.unflatten(0, (self.num_prompts, -1))
        return whole.flatten(0, 1)

    def _count(self, at: int) -> None:
        if at != self._at:
            self._at, self._seen = at, 0
            self.iterations = max(self.iterations, at + 1)
            if self.tick is not None:
                self.tick(self.rows)
        self._seen += 1

    def _index(self, positions: Sequence[int], width: int) -> Tensor:
        """Rows of these positions, prompt by prompt, among `width` a prompt."""
        return (torch.arange(self.num_prompts)[:, None] * width + torch.tensor(positions)[None]).flatten()

    # ------------------------------------------------------------------ what is stored

    def _store_entered(self, front: Front, stream: int, states: Tensor) -> None:
        layout = self.layout.get(front.step) if front.table == 0 else None
        if layout is None:
            return
        here = [u for u, unit in enumerate(front.units) if unit in layout.units]
        places = [layout.units.index(front.units[u]) for u in here]
        if here:
            whole = len(here) == len(front.units)
            part = states if whole else states[self._index(here, len(front.units)).to(states.device)]
            self._piece("enter", front.step, stream, places, part)

    def _store_means(self, group: _Group, front: Front, mean: Tensor, stream: int) -> None:
        layout = self.layout[front.step]
        here = [k for k, u in enumerate(group.units) if front.units[u] in layout.units]
        places = [layout.units.index(front.units[group.units[k]]) for k in here]
        if here:
            part = mean[self._index(here, len(group.units)).to(mean.device)]
            self._piece("mean", front.step, stream, places, part)

    def _piece(self, name: str, at: int, stream: int, places: Sequence[int], part: Tensor) -> None:
        self._pieces.setdefault((name, at, stream), []).append((places, part))

    def _completed(self, pieces: list[tuple[Sequence[int], Tensor]], at: int, stream: int) -> list:
        """Masks of a step with True for the draws that the pipeline left alone."""
        missing = sorted(set(range(len(self.layout[at].rows))) - {place for part, _ in pieces for place in part})
        shape = pieces[0][1].shape[1:]
        rest = pieces[0][1].new_ones((self.num_prompts * len(missing), *shape))
        return [*pieces, (missing, rest)] if missing else pieces

    def _whole(self, pieces: list[tuple[Sequence[int], Tensor]]) -> Tensor:
        """Pieces [P * n, ...] of several passes as one tensor in the order of their places."""
        places = [place for part, _ in pieces for place in part]
        if len(pieces) == 1 and places == sorted(places):
            return pieces[0][1]
        parts = torch.cat([t.unflatten(0, (self.num_prompts, -1)) for _, t in pieces], 1)
        order = sorted(range(len(places)), key=places.__getitem__)
        return parts[:, order].flatten(0, 1)

    # ------------------------------------------------------------------ log-probs

    def _note_mask(self, front: Front, step: Step) -> None:
        if step.kept is not None:
            each = step.kept.unflatten(0, (self.num_prompts, -1))
            for u, unit in enumerate(front.units):
                for i in unit:
                    self._masks.setdefault(i, {})[step.stream] = each[:, u]

    def _settle(self, stream: int, kept: Tensor | None, sources: list[int]) -> None:
        """Scores the draws of the segments that rows go on from: the pipeline has shown what it made of them."""
        still = []
        for record in self._pending.get(stream, []):
            shown = [j for j, i in enumerate(record.segments) if i in sources]
            if len(shown) == len(record.segments):
                self._score(record, stream, self._kept(record, kept, sources))
            elif shown:
                rest = [j for j in range(len(record.segments)) if j not in shown]
                part = self._part(record, shown)
                self._score(part, stream, self._kept(part, kept, sources))
                still.append(self._part(record, rest))
            else:
                still.append(record)
        self._pending[stream] = still

    def _part(self, record: _Pending, positions: list[int]) -> _Pending:
        index = self._index(positions, len(record.segments)).to(record.drawn.device)
        segments = tuple(record.segments[j] for j in positions)
        return _Pending(record.at, segments, record.gaussian.rows(index), record.drawn[index])

    def _kept(self, record: _Pending, kept: Tensor | None, sources: list[int]) -> Tensor | None:
        if kept is None:
            return None
        each = kept.unflatten(0, (self.num_prompts, -1))
        return _flat([each[:, sources.index(i)] for i in record.segments])

    def _score(self, record: _Pending, stream: int, kept: Tensor | None) -> None:
        rows, column = [self._row[i] for i in record.segments], self.tree.trained.index(record.at)
        if kept is not None:
            self._piece("keep", record.at, stream, [self.layout[record.at].rows.index(j) for j in rows], kept)
        total, count = record.gaussian.log_prob_sums(record.drawn.to(record.gaussian.mean.dtype), kept)
        self._put("total", rows, column, total)
        self._put("count", rows, column, count)
        self._scored.add(record.at)

    def _put(self, name: str, rows: list[int], column: int, values: Tensor) -> None:
        """Adds values [P * rows] to a number of each decision."""
        if name not in self._sums:
            shape = (self.num_prompts, len(self.tree.rows), len(self.tree.trained))
            self._sums[name] = torch.zeros(shape, dtype=values.dtype, device=values.device)
        self._sums[name][:, rows, column] += values.reshape(self.num_prompts, -1).to(self._sums[name])

    def result(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Log-probs [R, K] of the trained steps, mask [R, K] of the decisions that drew, and traits, on the CPU.

        Raises PolicyError where the pipeline's loop never came to a trained step.
        """
        missing = [s for s in self.tree.trained if s not in self._scored]
        if missing:
            raise PolicyError(
                f"step {missing[0]} is to be trained, but the pipeline's loop ended after {self.iterations} steps of "
                f"{self.tree.num_steps}: move the window, or raise sampler.steps (image-to-image skips steps)"
            )
        if not self.tree.trained:
            empty = torch.zeros(self.num_prompts * len(self.tree.leaves), 0)
            return empty, empty.bool(), {}
        total, count = self._sums["total"].flatten(0, 1), self._sums["count"].flatten(0, 1)
        logp = reduced(total, count, self.dynamics.reduce).cpu()
        return logp, (count > 0).cpu(), {name: self._sums[name].flatten(0, 1).cpu() for name in ("std", "dt")}


def _flat(parts: Sequence[Tensor]) -> Tensor:
    """[P, ...] of n segments as [P * n, ...]."""
    return torch.stack(list(parts), 1).flatten(0, 1)
