"""Keeps what a walk of the ODE is to be looked at again for: levels, visited states, leaps, and estimates of x_0."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.steps.coordinates import coordinates
from flowrl.policies.pipelines.steps.intercepted import Step
from flowrl.policies.pipelines.walks.trajectory import Streams, Trajectory, flat
from samplers.levels import highest
from samplers.plan import Front
from samplers.visits import Column, Injected, Visited

WHOLLY_NOISE = 0.99  # the least level at which a walk's first state passes for its noise


class VisitWriter:
    """Collects, step by step, what the columns of a tree with levels need; `result` puts it into the trajectory.

    storage: the dtype that states are kept in. solves: whether any step is taken by a solver other than euler.
    """

    def __init__(self, trajectory: Trajectory, storage: torch.dtype, *, solves: bool):
        self.trajectory, self.tree, self.storage, self.solves = trajectory, trajectory.tree, storage, solves
        self.num_prompts = len(trajectory.prompts)
        self.levels: dict[int, tuple[float, float]] = {}  # by step: its level, and the one it leads to
        self.visited = [c for c in self.tree.levels if isinstance(c, Visited)]
        self._states: dict[tuple[int, int], Streams] = {}  # by segment and step: where it began, [P, ...]
        self._velocities: dict[tuple[int, int], Streams] = {}
        self._of_states = {c.step for c in self.visited}
        self._of_states |= {0 for c in self.tree.levels if isinstance(c, Injected)}
        self._noise: dict[int, Streams] = {}  # by segment: what it began with, where that is kept
        self._judged = next((c.judged for c in self.visited), None)
        self._of_velocities = {c.step for c in self.visited if c.to is not None}
        if self._judged is not None:
            self._of_states.add(self._judged)
            self._of_velocities.add(self._judged)

    def write(self, step: Step, front: Front) -> None:
        """Notes a step's level, and keeps the states that it begins from where they are to be looked at again.

        Raises PolicyError where no gradient of a reward can go through the walk.
        """
        self._note_level(step)
        if not self._of_states:
            return
        if step.kept is not None or isinstance(step.s, Tensor):
            raise PolicyError(
                "this pipeline writes into its latents between steps, or holds a part of them at a level of its own, "
                "which no gradient of a reward goes through: choose an objective of another kind"
            )
        injects = any(isinstance(c, Injected) for c in self.tree.levels)
        if step.path == "exploding" or (step.path != "flow" and injects):
            raise PolicyError(f"on the path of this model ({step.path}) this objective is not defined: choose another")
        if self.solves:
            raise PolicyError("a step back through the walk is one of solver euler: set sampler.tail.solver=euler")
        for steps, kept, value in (
            (self._of_states, self._states, step.x),
            (self._of_velocities, self._velocities, step.v),
        ):
            if step.iteration in steps:
                copied = value.detach().to(self.storage, copy=True)  # some pipelines write into theirs
                each = copied.unflatten(0, (self.num_prompts, -1))
                for u, unit in enumerate(front.units):
                    for i in unit:
                        kept.setdefault((i, step.iteration), {})[step.stream] = each[:, u]

    def keep_noise(self, step: Step, front: Front) -> None:
        """Keeps the states that the walks begin with, where they are the noise that samples are noised with again: of
        a walk from a lower level, as of image-to-image, nothing is kept."""
        if step.iteration != 0 or step.path == "exploding" or highest(step.s) < WHOLLY_NOISE:
            return
        each = step.x.detach().to(self.storage, copy=True).unflatten(0, (self.num_prompts, -1))
        for u, unit in enumerate(front.units):
            for i in unit:
                self._noise.setdefault(i, {})[step.stream] = each[:, u]

    def store_noise(self) -> None:
        """Puts the noise that was kept into the trajectory, sample by sample."""
        roots = [self.tree.path(leaf)[0] for leaf in self.tree.leaves]
        if self._noise:
            streams = self._noise[roots[0]]
            self.trajectory.initial = {s: flat([self._noise[i][s] for i in roots]) for s in streams}

    def _note_level(self, step: Step) -> None:
        """Notes a step's level, and of a pipeline with levels of tokens the highest of each."""
        ends = highest(step.s), highest(step.s_next)
        if isinstance(step.s, Tensor) and step.iteration == 0:
            each = step.s.detach().float().expand(len(step.x), *step.s.shape[1:])
            self.trajectory.token_levels[step.stream] = each.unflatten(0, (self.num_prompts, -1))[:, 0]
        self.levels[step.iteration] = ends if step.path != "exploding" else (ends[0] / (1 + ends[0]), 0.0)
        self.trajectory.path = step.path

    def result(
        self, iterations: int, states: Callable[[Sequence[int], int], Tensor], streams: Sequence[int]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Keeps the finished states and the levels; log-probs [R, K] of 0, since nothing was drawn, a full mask, and
        the statistic `leap` [R, K] where a column leaps: the mean distance of where its velocity ends from the walk.

        iterations: that ran. states: gives the final states [R, ...] of segments, of a stream.
        """
        if missing := [n for n in self.tree.levels if isinstance(n, int) and n not in self.levels]:
            problem = f"samples are to be noised to the level of step {missing[0]}, but the loop ended after "
            problem += f"{iterations} of {self.tree.num_steps} steps (image-to-image: set pipeline.strength=1)"
            raise PolicyError(problem)
        trajectory = self.trajectory
        trajectory.clean = {stream: states(self.tree.leaves, stream) for stream in streams}
        trajectory.end = self.levels[max(self.levels)][1]
        ends = [self._ends(column) for column in self.tree.levels]
        trajectory.levels, trajectory.ends = tuple(s for s, _ in ends), tuple(to for _, to in ends)
        trajectory.factors = tuple(self._factor(column) for column in self.tree.levels)
        for n, column in enumerate(self.tree.levels):
            if isinstance(column, Visited):
                trajectory.walked[n] = self._of_leaves(self._states, column.step)
            elif isinstance(column, Injected) and not trajectory.initial:
                trajectory.initial = self._of_leaves(self._states, 0)
        if self._judged is not None:
            x, v = (self._of_leaves(kept, self._judged) for kept in (self._states, self._velocities))
            at = coordinates(trajectory.path, self.levels[self._judged][0])
            trajectory.judged = {stream: (x[stream].float() - at.level * v[stream].float()) / at.unit for stream in x}
        zeros = torch.zeros(self.num_prompts * len(self.tree.leaves), len(ends))
        leaps = {n: self._leap(n, column) for n, column in enumerate(self.tree.levels) if isinstance(column, Visited)}
        told = zeros.clone()
        for n, gap in leaps.items():
            if gap is not None:
                told[:, n] = gap.cpu()
        found = {"leap": told} if any(gap is not None for gap in leaps.values()) else {}
        return zeros, torch.ones_like(zeros, dtype=torch.bool), found

    def _of_leaves(self, kept: dict[tuple[int, int], Streams], step: int) -> Streams:
        """What was kept of the leaves where a step began."""
        leaves = self.tree.leaves
        return {s: flat([kept[i, step][s] for i in leaves]) for s in kept[leaves[0], step]}

    def _ends(self, column: Column) -> tuple[float, float]:
        """The level of a column, and the one that its step leads to."""
        if isinstance(column, Visited):
            at, after = self.levels[column.step]
            if column.to is not None:
                end = 0.0 if column.judged is not None else self.trajectory.end
                after = self.levels[column.to][0] if column.to in self.levels else end
            return at, after
        if isinstance(column, Injected):
            return column.level, column.to
        return (self.levels[column][0] if isinstance(column, int) else column), 0.0

    def _factor(self, column: Column) -> float:
        """What a column's step weighs; see `Visited.over`."""
        if not isinstance(column, Visited) or column.over is None:
            return 1.0
        lengths = {step: abs(to - s) for step, (s, to) in self.levels.items()}
        active = sum(lengths[c.step] for c in self.visited if c.over is not None)
        return sum(lengths[step] for step in range(*column.over)) / active

    def _leap(self, n: int, column: Visited) -> Tensor | None:
        """Mean absolute distance [R] of where a leap ends from the state that the walk had there; None if it is none,
        or ends where no state was kept."""
        if column.to is None or (column.to in self.levels and column.to not in self._of_states):
            return None
        (s, to), path = (self.trajectory.levels[n], self.trajectory.ends[n]), self.trajectory.path
        at, after = coordinates(path, s), coordinates(path, to)
        x, v = self.trajectory.walked[n][0].float(), self._of_leaves(self._velocities, column.step)[0].float()
        carry = after.unit / at.unit
        whole = self.trajectory.clean if column.to not in self.levels else self._of_leaves(self._states, column.to)
        return (carry * x + (to - carry * s) * v - whole[0].float()).abs().flatten(1).mean(1)
