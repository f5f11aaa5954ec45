"""Walks over a recorded rollout: a replay scores the trained steps, a look takes one velocity or decodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.contracts import Progress, View
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import Key
from flowrl.policies.pipelines.steps.dynamics import Dynamics, scale_std
from flowrl.policies.pipelines.steps.intercepted import EndOfWalk, Step
from flowrl.policies.pipelines.walks.trajectory import Streams, Trajectory, take
from samplers.decisions import decisions
from samplers.gaussian import Gaussian, pool_streams
from samplers.plan import OwnTable, Table


@dataclass(frozen=True)
class ReplayStep:
    """What one trained step needs to be scored again for some rows.

    rows: int64 [r], those of the rollout that have a decision there; drawn: int64 [r], its place in the trajectory.
    states: int64 [n], places of the states that they start from, each once; among: int64 [r], each row's place in
    states. leads: (prompt, segment) of each state; a pass that holds several of them needs them to agree in prompt and
    initial noise.
    """

    rows: Tensor
    drawn: Tensor
    states: Tensor
    among: Tensor
    leads: tuple[tuple[int, int], ...]


def replay_step(trajectory: Trajectory, step: int, rows: Tensor) -> ReplayStep | None:
    """The replay of a step for rows int64 [r] of a rollout; None if none of them has a decision there."""
    layout = decisions(trajectory.tree)[step]
    rows, drawn, wanted = layout.find(rows, len(trajectory.tree.rows))
    if not len(rows):
        return None
    states, among = wanted.unique(return_inverse=True)
    width = len(layout.units)
    leads = tuple((int(s) // width, layout.units[int(s) % width][0]) for s in states)
    return ReplayStep(rows, drawn, states, among, leads)


def replay_steps_by_pass(
    trajectory: Trajectory, rows: Tensor, *, steps: Sequence[int] | None = None
) -> list[dict[int, ReplayStep]]:
    """The replay steps of rows int64 [r] at these steps (None: all trained ones), grouped by what one call of the
    pipeline can hold.

    If the pipeline keeps something from step to step (`Trajectory.complete`), each takes a call of its own, so that no
    graph reaches from one into the next.
    """
    by_call: dict[tuple[object, ...], dict[int, ReplayStep]] = {}
    for step in trajectory.tree.trained if steps is None else steps:
        here = replay_step(trajectory, step, rows)
        if here is not None:
            starts: list[tuple[int, Key]] = [(p, trajectory.start(p, i)) for p, i in here.leads]
            by_call.setdefault((step if trajectory.complete else None, *starts), {})[step] = here
    return list(by_call.values())


Visit = Callable[[int, Tensor, Tensor, Tensor | None, Tensor | None], None]  # step, rows, logp, kl, centred


class ReplayWalk:
    """The walk of a replay over the steps of one pass.

    `visit(step, rows [r], logp [r], kl [r] or None, centred [r] or None)` is called after the last stream of each; it
    may call backward. Under the reference weights, the means of a view that asks for exact_kl are filled into the
    trajectory instead of being compared with it.
    """

    def __init__(
        self,
        trajectory: Trajectory,
        dynamics: Dynamics,
        streams: Callable[[int], int],
        replay_steps: dict[int, ReplayStep],
        visit: Visit,
        view: View,
        *,
        progress: Progress | None = None,
    ):
        self.trajectory, self.dynamics, self.streams, self.replay_steps, self.visit = (
            trajectory,
            dynamics,
            streams,
            replay_steps,
            visit,
        )
        self.view, self.progress = view, progress
        self.table = trajectory.tree.tables[0]
        self._sums: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._remaining = sorted(replay_steps)

    @property
    def rows(self) -> int:
        """Rows of the pass."""
        return len(self.leads())

    def leads(self) -> list[tuple[int, int]]:
        """(prompt, segment) that each row of the pass stands for."""
        return list(next(iter(self.replay_steps.values())).leads)

    def is_real(self, iteration: int) -> bool:
        """Only the replayed steps run."""
        return iteration in self.replay_steps

    def skipped_state(self, iteration: int, stream: int) -> Tensor:
        """The states [R, ...] before the next step that runs; if all are stored, those after this iteration."""
        at = self._remaining[0]
        if self.trajectory.complete and iteration + 1 < at:
            passed = [(p, self.trajectory.segment_holding(i, iteration)) for p, i in self.leads()]
            return torch.stack([self.trajectory.states[i, iteration][stream][p] for p, i in passed])
        return self._entry_states(at, stream)

    def _entry_states(self, at: int, stream: int) -> Tensor:
        return take(self.trajectory.enter[at][stream], self.replay_steps[at].states)

    def step(self, step: Step) -> Tensor:
        """Scores the recorded draws; returns the next states [R, ...], and ends the pass after the last step."""
        at, stream, replay_step = step.iteration, step.stream, self.replay_steps[step.iteration]
        gaussian = self.dynamics.gaussian(step, stochastic=True)
        drawn = take(self.trajectory.drawn[at][stream], replay_step.drawn)
        kept = self.trajectory.keep.get(at, {}).get(stream)
        kept = None if kept is None else take(kept, replay_step.drawn)
        children = self._children(gaussian, replay_step, at)
        x = drawn.to(children.mean.dtype)
        self._add("logp", self.dynamics.log_prob_sums(children, x, kept))
        if self.view.exact_kl and self.view.weights == "reference":
            self._store_reference(at, stream, gaussian.mean, replay_step)
        elif self.view.exact_kl:
            mean = take(self.trajectory.reference[at][stream], replay_step.states)
            other = Gaussian(take(mean, replay_step.among), children.std)
            self._add("kl", children.kl_sums(other, kept))
        if self.view.centred:
            mean = take(self.trajectory.mean[at][stream], replay_step.states)
            self._add("centred", children.centred_sums(take(mean, replay_step.among), x, kept))
        if len(self._sums["logp"]) == self.streams(at):
            self._hand_over(at)
        if not self._remaining:
            raise EndOfWalk
        if at + 1 in self.replay_steps:
            return self._entry_states(at + 1, stream)
        return gaussian.mean.detach()  # skipped iterations pass on what was recorded

    def _children(self, gaussian: Gaussian, replay_step: ReplayStep, at: int) -> Gaussian:
        """The Gaussian of every row's decision."""
        segments, mine = self.trajectory.tree.segments, self.trajectory.tree.rows
        if not torch.equal(replay_step.among, torch.arange(len(gaussian.mean))):
            gaussian = gaussian.rows(replay_step.among.to(gaussian.mean.device))
        whose = [segments[mine[row % len(mine)]] for row in replay_step.rows.tolist()]
        return scale_std(gaussian, [s.scale if s.begin == at else 1.0 for s in whose])

    def _add(self, name: str, sums: tuple[Tensor, Tensor]) -> None:
        self._sums.setdefault(name, []).append(sums)

    def _hand_over(self, at: int) -> None:
        results = {
            name: pool_streams(sums, self.dynamics.reduce) for name, sums in self._sums.items() if name != "centred"
        }
        if "centred" in self._sums:  # by its definition a mean, whatever log-probs are
            results["centred"] = pool_streams(self._sums["centred"], "mean")
        self._sums = {}
        self._remaining.remove(at)
        if self.progress is not None:
            self.progress(self.rows)
        self.visit(at, self.replay_steps[at].rows, results["logp"], results.get("kl"), results.get("centred"))

    def _store_reference(self, at: int, stream: int, mean: Tensor, replay_step: ReplayStep) -> None:
        streams = self.trajectory.reference.setdefault(at, {})
        if stream not in streams:
            number = len(self.trajectory.prompts) * len(decisions(self.trajectory.tree)[at].units)
            streams[stream] = mean.new_zeros((number, *mean.shape[1:]))
        streams[stream][replay_step.states.to(mean.device)] = mean.detach()


class LookWalk:
    """The walk that takes the velocity of given states at one iteration, or passes final states to the decoder."""

    def __init__(self, states: Streams, iteration: int | None, streams: int = 1, table: Table | None = None):
        self.states, self.iteration, self.streams = states, iteration, streams
        self.table = OwnTable() if table is None else table
        self.rows = len(next(iter(states.values())))
        self.velocity: Streams = {}
        self.seen: dict[int, Step] = {}  # by stream: the step that was looked at

    def is_real(self, iteration: int) -> bool:
        """Only the iteration of the look; none when decoding."""
        return iteration == self.iteration

    def skipped_state(self, iteration: int, stream: int) -> Tensor:
        """The given states [R, ...]."""
        return self.states[stream]

    def step(self, step: Step) -> Tensor:
        """Keeps the velocity [R, ...] and ends the walk after the last stream."""
        given = self.states[step.stream]
        if step.iteration == 0 and not torch.equal(step.x.detach(), given.detach().to(step.x)):
            raise PolicyError(
                "this pipeline does not take `latents` as the state of its first step: ask from step 1 on"
            )
        self.velocity[step.stream], self.seen[step.stream] = step.v, step
        if len(self.velocity) == self.streams:
            raise EndOfWalk
        return given
