"""Writes a trajectory: states, draws and means of trained steps, their log-probs, and which elements count.

They come in pieces, since a step of one tree may run in several calls of the pipeline. A draw is scored once the
pipeline has shown what it did with it: some (inpainting, image to video) overwrite elements of every state.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.policies.pipelines.steps.dynamics import Dynamics
from flowrl.policies.pipelines.walks.trajectory import Streams, Trajectory, flat, positions
from samplers.decisions import decisions
from samplers.gaussian import Gaussian, reduce_sums
from samplers.plan import Front, Unit

STEP_STATS = ("std", "dt")


@dataclass
class _Pending:
    """Draws of a trained step that are not scored yet."""

    at: int
    segments: Unit
    gaussian: Gaussian  # [P * segments, ...]
    drawn: Tensor


class TrajectoryWriter:
    """Collects the records of one rollout; `finish` puts them into the trajectory."""

    def __init__(self, trajectory: Trajectory, dynamics: Dynamics):
        self.trajectory, self.tree, self.dynamics = trajectory, trajectory.tree, dynamics
        self.num_prompts = len(trajectory.prompts)
        self.layout = decisions(trajectory.tree)
        self._row = {segment: j for j, segment in enumerate(self.tree.rows)}
        self._rows = list(range(len(self.tree.rows)))
        self._pending: dict[int, list[_Pending]] = {}
        self._masks: dict[int, Streams] = {}  # by segment: what was kept of the state that its last step started from
        self._pieces: dict[tuple[str, int, int], list[tuple[Sequence[int], Tensor]]] = {}
        self._sums: dict[str, Tensor] = {}
        self._scored: set[int] = set()
        self._first: dict[tuple[int, Unit], int] = {}  # the stream whose step_stats count

    # ------------------------------------------------------------------ as the walk goes

    def store_entry_states(self, front: Front, stream: int, states: Tensor) -> None:
        """Stores the states [P * units, ...] that trained steps start from."""
        self._units("enter", front, range(len(front.units)), stream, states)

    def store_means(self, front: Front, units: Sequence[int], stream: int, mean: Tensor) -> None:
        """Stores the means [P * units, ...] of these units of a front."""
        self._units("mean", front, units, stream, mean)

    def _units(self, name: str, front: Front, units: Sequence[int], stream: int, values: Tensor) -> None:
        layout = self.layout.get(front.step) if front.table == 0 else None
        if layout is None:
            return
        here = [k for k, u in enumerate(units) if front.units[u] in layout.units]
        if here:
            places = [layout.units.index(front.units[units[k]]) for k in here]
            part = values if len(here) == len(units) else values[self._index(here, len(units), values)]
            self._piece(name, front.step, stream, places, part)

    def store_draws(
        self, at: int, stream: int, segments: Unit, gaussian: Gaussian, state: Tensor, step_stats: Streams
    ) -> None:
        """Stores the draws [P * segments, ...] of a step; those that are trained will be scored.

        step_stats: std and dt [P * segments] by their position in TRAITS.
        """
        trained = [j for j, i in enumerate(segments) if at in self.tree.segments[i].trained]
        if not trained:
            return
        if len(trained) < len(segments):
            index = self._index(trained, len(segments), state)
            gaussian, state = gaussian.rows(index), state[index]
            step_stats = {k: value[index.to(value.device)] for k, value in step_stats.items()}
        segments = tuple(segments[j] for j in trained)
        rows = [self._row[i] for i in segments]
        self._piece("drawn", at, stream, [self.layout[at].rows.index(j) for j in rows], state)
        self._pending.setdefault(stream, []).append(_Pending(at, segments, gaussian, state))
        if stream == self._first.setdefault((at, segments), stream):  # copies of a scheduler may step without it
            for k, name in enumerate(STEP_STATS):
                self._put(name, rows, at, step_stats[k])

    def score_draws(self, front: Front, stream: int, kept: Tensor | None, sources: Sequence[int]) -> None:
        """Scores the draws of the segments `sources` that the units of a front continue from.

        kept: bool [P * units, ...], False where the pipeline overwrote; None if it overwrote nothing.
        """
        each = None if kept is None else kept.unflatten(0, (self.num_prompts, -1))
        still = []
        for record in self._pending.get(stream, []):
            here = [j for j, i in enumerate(record.segments) if i in sources]
            rest = [j for j in range(len(record.segments)) if j not in here]
            if here:
                part = self._part(record, here)
                self._score(part, stream, None if each is None else _of(each, part.segments, sources))
            if rest:
                still.append(self._part(record, rest))
        self._pending[stream] = still
        if each is not None:
            for u, unit in enumerate(front.units):
                for i in unit:
                    self._masks.setdefault(i, {})[stream] = each[:, u]

    # ------------------------------------------------------------------ the end

    def finish(self) -> None:
        """Scores the last draws, whose overwritten elements no later step showed, with the mask of the step before;
        fills the trajectory."""
        for stream, waiting in self._pending.items():
            for record in waiting:
                masks = [self._masks.get(i, {}).get(stream) for i in record.segments]
                known = [mask for mask in masks if mask is not None]
                self._score(record, stream, flat(known) if len(known) == len(masks) else None)
        self._pending.clear()
        for (name, at, stream), pieces in self._pieces.items():
            whole = self._complete(pieces, at) if name == "keep" else pieces
            getattr(self.trajectory, name).setdefault(at, {})[stream] = self._join(whole)
        self._pieces.clear()

    def missing(self) -> list[int]:
        """Trained steps that were never reached."""
        return [step for step in self.tree.trained if step not in self._scored]

    def result(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Log-probs [R, K], mask [R, K] of the decisions that drew, and step_stats, on the CPU."""
        if not self.tree.trained:
            empty = torch.zeros(self.num_prompts * len(self.tree.leaves), 0)
            return empty, empty.bool(), {}
        total, count = self._sums["total"].flatten(0, 1), self._sums["count"].flatten(0, 1)
        step_stats = {name: self._sums[name].flatten(0, 1).cpu() for name in STEP_STATS}
        return reduce_sums(total, count, self.dynamics.reduce).cpu(), (count > 0).cpu(), step_stats

    # ------------------------------------------------------------------ parts

    def _part(self, record: _Pending, of: list[int]) -> _Pending:
        if len(of) == len(record.segments):
            return record
        index = self._index(of, len(record.segments), record.drawn)
        return _Pending(
            record.at, tuple(record.segments[j] for j in of), record.gaussian.rows(index), record.drawn[index]
        )

    def _score(self, record: _Pending, stream: int, kept: Tensor | None) -> None:
        rows = [self._row[i] for i in record.segments]
        if kept is not None:
            self._piece("keep", record.at, stream, [self.layout[record.at].rows.index(j) for j in rows], kept)
        total, count = self.dynamics.log_prob_sums(record.gaussian, record.drawn, kept)
        self._put("total", rows, record.at, total)
        self._put("count", rows, record.at, count)
        self._scored.add(record.at)

    def _put(self, name: str, rows: list[int], at: int, values: Tensor) -> None:
        """Adds values [P * rows] to a per-decision sum."""
        if name not in self._sums:
            shape = (self.num_prompts, len(self.tree.rows), len(self.tree.trained))
            self._sums[name] = torch.zeros(shape, dtype=values.dtype, device=values.device)
        column = self._sums[name][..., self.tree.trained.index(at)]
        values = values.reshape(self.num_prompts, -1).to(column)
        if rows == self._rows:  # one addition in place of a look-up of each, which copies twice
            column += values
        else:
            column[:, rows] += values

    def _index(self, of: Sequence[int], width: int, like: Tensor) -> Tensor:
        return positions(of, width, self.num_prompts).to(like.device)

    def _piece(self, name: str, at: int, stream: int, places: Sequence[int], part: Tensor) -> None:
        self._pieces.setdefault((name, at, stream), []).append((places, part))

    def _complete(self, pieces: list[tuple[Sequence[int], Tensor]], at: int) -> list[tuple[Sequence[int], Tensor]]:
        """Masks of a step, True for the draws that the pipeline left alone."""
        missing = sorted(set(range(len(self.layout[at].rows))) - {place for part, _ in pieces for place in part})
        rest = pieces[0][1].new_ones((self.num_prompts * len(missing), *pieces[0][1].shape[1:]))
        return [*pieces, (missing, rest)] if missing else pieces

    def _join(self, pieces: list[tuple[Sequence[int], Tensor]]) -> Tensor:
        """Pieces [P * n, ...] of several calls as one tensor, in the order of their places."""
        places = [place for part, _ in pieces for place in part]
        if len(pieces) == 1 and places == sorted(places):
            return pieces[0][1]
        parts = torch.cat([t.unflatten(0, (self.num_prompts, -1)) for _, t in pieces], 1)
        return parts[:, sorted(range(len(places)), key=places.__getitem__)].flatten(0, 1)


def _of(each: Tensor, segments: Unit, sources: Sequence[int]) -> Tensor:
    """The part of [P, units, ...] that belongs to the units that continue from these segments, [P * segments, ...]."""
    return each[:, [sources.index(i) for i in segments]].flatten(0, 1)
