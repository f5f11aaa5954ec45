"""Walks over what was recorded: a replay scores the trained steps, a look takes one velocity or decodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import Key
from flowrl.policies.pipelines.dynamics import Dynamics, scaled
from flowrl.policies.pipelines.intercepted_step import Leave, Step
from flowrl.policies.pipelines.trajectory import Streams, Tape, take
from samplers.decisions import decisions
from samplers.gaussian import Gaussian, pooled
from samplers.plan import Own, Table


@dataclass(frozen=True)
class Scene:
    """What one trained step needs, to be scored again for some rows.

    rows: those of the rollout that have a decision there; drawn: its place in the tape. states: places of the states
    that they start from, each once; among: for each row, its place in states. leads: (prompt, segment) of each state; a
    pass that holds several scenes needs them to agree in prompt and initial noise.
    """

    rows: Tensor
    drawn: Tensor
    states: Tensor
    among: Tensor
    leads: tuple[tuple[int, int], ...]


def scene(tape: Tape, step: int, rows: Tensor) -> Scene | None:
    """The scene of a step for rows of a rollout, None where none of them has a decision there."""
    layout = decisions(tape.tree)[step]
    rows, drawn, wanted = layout.find(rows, len(tape.tree.rows))
    if not len(rows):
        return None
    states, among = wanted.unique(return_inverse=True)
    width = len(layout.units)
    leads = tuple((int(s) // width, layout.units[int(s) % width][0]) for s in states)
    return Scene(rows, drawn, states, among, leads)


def scenes_by_pass(tape: Tape, rows: Tensor, *, steps: Sequence[int] | None = None) -> list[dict[int, Scene]]:
    """The scenes of these steps (None: all that were trained), those together that one call of the pipeline can hold.

    Where something is left behind from step to step (`Tape.complete`), each takes a call of its own, so that no graph
    reaches from one into the next.
    """
    found: dict[tuple[object, ...], dict[int, Scene]] = {}
    for step in tape.tree.trained if steps is None else steps:
        here = scene(tape, step, rows)
        if here is not None:
            starts: list[tuple[int, Key]] = [(p, tape.start(p, i)) for p, i in here.leads]
            found.setdefault((step if tape.complete else None, *starts), {})[step] = here
    return list(found.values())


Visit = Callable[[int, Tensor, Tensor, Tensor | None, Tensor | None], None]  # step, rows, logp, kl, centred


class Replaying:
    """The walk of a replay over the scenes of one pass.

    `visit(step, rows [r], logp [r], kl [r] or None, centred [r] or None)` is called after the last stream of each; it
    may call backward. With `reference` the means are filled into the tape instead of being compared with it.
    """

    def __init__(
        self,
        tape: Tape,
        dynamics: Dynamics,
        streams: Callable[[int], int],
        scenes: dict[int, Scene],
        visit: Visit,
        *,
        reference: bool = False,
        exact_kl: bool = False,
        centred: bool = False,
        tick: Callable[[int], None] | None = None,
    ):
        self.tape, self.dynamics, self.streams, self.scenes, self.visit = tape, dynamics, streams, scenes, visit
        self.reference, self.exact_kl, self.centred, self.tick = reference, exact_kl, centred, tick
        self.table = tape.tree.tables[0]
        self._sums: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._remaining = sorted(scenes)

    @property
    def rows(self) -> int:
        """Rows of the pass."""
        return len(self.leads())

    def leads(self) -> list[tuple[int, int]]:
        """(prompt, segment) that each row of the pass stands for."""
        return list(next(iter(self.scenes.values())).leads)

    def is_real(self, iteration: int) -> bool:
        """Only the steps asked for run."""
        return iteration in self.scenes

    def entering(self, iteration: int, stream: int) -> Tensor:
        """The state before the next step that runs; where all states are stored, the one after this iteration."""
        at = self._remaining[0]
        if self.tape.complete and iteration + 1 < at:
            passed = [(p, self.tape.passed(i, iteration)) for p, i in self.leads()]
            return torch.stack([self.tape.states[i, iteration][stream][p] for p, i in passed])
        return self._entered(at, stream)

    def _entered(self, at: int, stream: int) -> Tensor:
        return take(self.tape.enter[at][stream], self.scenes[at].states)

    def step(self, step: Step) -> Tensor:
        """Scores the recorded draws; ends the pass after the last step asked for."""
        at, stream, scene = step.iteration, step.stream, self.scenes[step.iteration]
        gaussian = self.dynamics.gaussian(step, stochastic=True)
        drawn = take(self.tape.drawn[at][stream], scene.drawn)
        kept = self.tape.keep.get(at, {}).get(stream)
        kept = None if kept is None else take(kept, scene.drawn)
        children = self._children(gaussian, scene, at)
        x = drawn.to(children.mean.dtype)
        self._add("logp", self.dynamics.log_prob_sums(children, x, kept))
        if self.reference:
            self._remember(at, stream, gaussian.mean, scene)
        elif self.exact_kl:
            mean = take(self.tape.reference[at][stream], scene.states)
            other = Gaussian(take(mean, scene.among), children.std)
            self._add("kl", children.kl_sums(other, kept))
        if self.centred:
            mean = take(self.tape.mean[at][stream], scene.states)
            self._add("centred", children.centred_sums(take(mean, scene.among), x, kept))
        if len(self._sums["logp"]) == self.streams(at):
            self._hand_over(at)
        if not self._remaining:
            raise Leave
        if at + 1 in self.scenes:
            return self._entered(at + 1, stream)
        return gaussian.mean.detach()  # skipped iterations hand on what was recorded

    def _children(self, gaussian: Gaussian, scene: Scene, at: int) -> Gaussian:
        """The Gaussian of every row's decision."""
        segments, mine = self.tape.tree.segments, self.tape.tree.rows
        if not torch.equal(scene.among, torch.arange(len(gaussian.mean))):
            gaussian = gaussian.rows(scene.among.to(gaussian.mean.device))
        whose = [segments[mine[row % len(mine)]] for row in scene.rows.tolist()]
        return scaled(gaussian, [s.scale if s.begin == at else 1.0 for s in whose])

    def _add(self, name: str, sums: tuple[Tensor, Tensor]) -> None:
        self._sums.setdefault(name, []).append(sums)

    def _hand_over(self, at: int) -> None:
        found = {name: pooled(sums, self.dynamics.reduce) for name, sums in self._sums.items() if name != "centred"}
        if "centred" in self._sums:  # by its definition a mean, whatever log-probs are
            found["centred"] = pooled(self._sums["centred"], "mean")
        self._sums = {}
        self._remaining.remove(at)
        if self.tick is not None:
            self.tick(self.rows)
        self.visit(at, self.scenes[at].rows, found["logp"], found.get("kl"), found.get("centred"))

    def _remember(self, at: int, stream: int, mean: Tensor, scene: Scene) -> None:
        streams = self.tape.reference.setdefault(at, {})
        if stream not in streams:
            number = len(self.tape.prompts) * len(decisions(self.tape.tree)[at].units)
            streams[stream] = mean.new_zeros((number, *mean.shape[1:]))
        streams[stream][scene.states.to(mean.device)] = mean.detach()


class Looking:
    """The walk that takes the velocity of given states at one iteration, or hands final states to the decoder."""

    def __init__(self, states: Streams, iteration: int | None, streams: int = 1, table: Table | None = None):
        self.states, self.iteration, self.streams = states, iteration, streams
        self.table = Own() if table is None else table
        self.rows = len(next(iter(states.values())))
        self.velocity: Streams = {}

    def is_real(self, iteration: int) -> bool:
        """The one iteration looked at; none when decoding."""
        return iteration == self.iteration

    def entering(self, iteration: int, stream: int) -> Tensor:
        """The given states."""
        return self.states[stream]

    def step(self, step: Step) -> Tensor:
        """Keeps the velocity and leaves after the last stream."""
        given = self.states[step.stream]
        if step.iteration == 0 and not torch.equal(step.x.detach(), given.detach().to(step.x)):
            raise PolicyError(
                "this pipeline does not take `latents` as the state of its first step: ask from step 1 on"
            )
        self.velocity[step.stream] = step.v
        if len(self.velocity) == self.streams:
            raise Leave
        return given
