"""What happens at an intercepted step: a rollout draws and records, a replay scores, a look takes one velocity.

A rollout's states are rounded to their storage dtype before they are scored and handed on, so that what is stored
is exactly what was sampled, and a replay at the same batch shape gives the same log-prob bit for bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import step_noise
from flowrl.policies.scheduler import Leave, Step
from flowrl.policies.tape import Streams, Tape, take
from samplers.gaussian import Gaussian, pooled
from samplers.renoising import vp_ddim
from samplers.transitions import ve_sde


@dataclass(frozen=True)
class Dynamics:
    """How a step becomes a distribution: transition, noise strength, and the dtypes of stored states and log-probs."""

    transition: Callable[..., Gaussian]
    noise: float
    reduce: str = "mean"
    storage: torch.dtype = torch.float32
    precision: torch.dtype = torch.float32

    def gaussian(self, step: Step, *, stochastic: bool) -> Gaussian:
        """The distribution of the next state. Off the flow's path, the transition of that path takes over."""
        transition = {"exploding": ve_sde, "preserving": vp_ddim}.get(step.path, self.transition)
        noise = self.noise if stochastic else 0.0
        x, v = step.x.to(self.precision), step.v.to(self.precision)
        return transition(x, v, step.s, step.s_next, noise=noise, s_cap=step.s_cap)


class Recording:
    """The walk of a rollout, over one pass, or over two when rows share their start.

    With `parent` [R], the first pass has a row for each parent and ends with the first stochastic step, `fan`, whose
    distribution every child draws from; the second goes on with all rows.
    """

    def __init__(
        self,
        tape: Tape,
        dynamics: Dynamics,
        streams: Callable[[int], int],
        *,
        tick: Callable[[int], None] | None = None,
    ):
        self.tape, self.dynamics, self.streams = tape, dynamics, streams
        self.fan: int | None = None
        self.parent: Tensor | None = None
        self.tick = tick
        self.begin_at, self.rows = 0, len(tape)
        self.state: Streams = {}
        self.iterations = 0
        self.sums: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._pending: dict[int, tuple[int, Gaussian]] = {}
        self._overwritten: Streams = {}  # by stream, the last mask seen
        self._seen = 0

    def begin(self, begin_at: int, rows: int) -> None:
        """Sets up the next pass: its first real iteration and its batch."""
        self.begin_at, self.rows, self._seen = begin_at, rows, 0

    def is_real(self, iteration: int) -> bool:
        """Iterations before the pass's first are the recorded ones."""
        return iteration >= self.begin_at

    def entering(self, iteration: int, stream: int) -> Tensor:
        """The state that the pass goes on from."""
        if self.tape.complete and iteration + 1 < self.begin_at:
            return self.tape.enter[iteration + 1][stream]
        return self.state[stream]

    def step(self, step: Step) -> Tensor:
        """Draws the next state, and records it where it is trained."""
        at, stream, plan = step.iteration, step.stream, self.tape.plan
        self._settle(stream, step.kept)
        trained, parent = at in plan.trained, self.parent if at == self.fan else None
        gaussian = self.dynamics.gaussian(step, stochastic=at in plan.stochastic)
        if (trained or self.tape.complete) and stream in self.state:
            self.tape.enter.setdefault(at, {})[stream] = self.state[stream]
        if parent is not None:
            gaussian = gaussian.rows(parent.to(gaussian.mean.device))
        state = self._draw(gaussian, at, stream) if at in plan.stochastic else gaussian.mean
        self.state[stream] = state = state.to(self.dynamics.storage)
        if trained:
            self.tape.drawn.setdefault(at, {})[stream] = state
            self._pending[stream] = (at, gaussian)
        self._count(at)
        if parent is not None and self._seen == self.streams(at):
            raise Leave
        return state if parent is None else state[: self.rows]  # the pass ends before anything is made of these

    def finish(self) -> None:
        """Scores what no later step showed to be overwritten or not: as the step before it was."""
        for stream in list(self._pending):
            self._settle(stream, self._overwritten.get(stream))

    def logp(self, step: int) -> tuple[Tensor, Tensor]:
        """Log-probs [R] of a trained step, and which rows had anything stochastic."""
        counts = torch.stack([count for _, count in self.sums[step]]).sum(0)
        return pooled(self.sums[step], self.dynamics.reduce), counts > 0

    def _draw(self, gaussian: Gaussian, at: int, stream: int) -> Tensor:
        mean = gaussian.mean
        return gaussian.sample(step_noise(self.tape.keys, at, stream, mean.shape[1:], mean.device).to(mean.dtype))

    def _settle(self, stream: int, kept: Tensor | None) -> None:
        """Scores the stream's last trained step, now that the pipeline has shown what it made of its result."""
        if kept is not None:
            self._overwritten[stream] = kept
        if stream not in self._pending:
            return
        at, gaussian = self._pending.pop(stream)
        if kept is not None:
            self.tape.keep.setdefault(at, {})[stream] = kept
        drawn = self.tape.drawn[at][stream].to(gaussian.mean.dtype)
        self.sums.setdefault(at, []).append(gaussian.log_prob_sums(drawn, kept))

    def _count(self, at: int) -> None:
        if at >= self.iterations or self._seen == 0:
            self.iterations, self._seen = at + 1, 0
            if self.tick is not None:
                self.tick(self.rows)
        self._seen += 1


class Replaying:
    """The walk of a replay: the recorded steps `steps`, which ran on one set of rows, scored for rows `rows` [r].

    `visit(step, logp [r], kl [r] or None)` is called after the last stream of each; it may call backward. With
    `reference` the means are filled into the tape instead of being compared with it.
    """

    def __init__(
        self,
        tape: Tape,
        dynamics: Dynamics,
        streams: Callable[[int], int],
        rows: Tensor,
        steps: Sequence[int],
        visit: Callable[[int, Tensor, Tensor | None], None],
        *,
        reference: bool = False,
        exact_kl: bool = False,
        tick: Callable[[int], None] | None = None,
    ):
        self.tape, self.dynamics, self.streams, self.steps, self.visit = tape, dynamics, streams, list(steps), visit
        self.reference, self.exact_kl, self.tick = reference, exact_kl, tick
        self.row_index, self.among = rows, None
        self.states = rows  # where this pass's states lie in `enter`
        if steps[0] in tape.parent:
            self.states, self.among = tape.parent[steps[0]][rows].unique(return_inverse=True)
        self.rows = len(self.states)
        self._logp: list[tuple[Tensor, Tensor]] = []
        self._kl: list[tuple[Tensor, Tensor]] = []
        self._remaining = list(self.steps)

    def prompt_rows(self) -> list[int]:
        """Rows of the tape whose prompts and initial noise the pipeline is called with."""
        lead = self.tape.lead.get(self.steps[0])
        return (self.states if lead is None else lead[self.states]).tolist()

    def is_real(self, iteration: int) -> bool:
        """Only the steps asked for run."""
        return iteration in self.steps

    def entering(self, iteration: int, stream: int) -> Tensor:
        """The state before the next step that runs; where all states are stored, the one after this iteration."""
        at = iteration + 1 if self.tape.complete else self._remaining[0]
        return take(self.tape.enter[at][stream], self.states)

    def step(self, step: Step) -> Tensor:
        """Scores the recorded draw; ends the pass after the last step asked for."""
        at, stream = step.iteration, step.stream
        gaussian = self.dynamics.gaussian(step, stochastic=True)
        drawn = self.tape.drawn[at][stream]
        children = gaussian if self.among is None else gaussian.rows(self.among.to(gaussian.mean.device))
        x = take(drawn, self.row_index)
        kept = self.tape.keep.get(at, {}).get(stream)
        kept = None if kept is None else take(kept, self.row_index)
        self._logp.append(children.log_prob_sums(x.to(gaussian.mean.dtype), kept))
        if self.reference:
            self._remember(at, stream, gaussian.mean)
        elif self.exact_kl:
            mean = take(self.tape.reference[at][stream], self.states)
            other = Gaussian(mean, gaussian.std)
            other = other if self.among is None else other.rows(self.among.to(mean.device))
            self._kl.append(children.kl_sums(other, kept))
        if len(self._logp) == self.streams(at):
            self._hand_over(at)
        if not self._remaining:
            raise Leave
        # where this pass goes on, its rows are the tape's own: a step that fans out is always the last of its pass
        return x if self.among is None else gaussian.mean.detach()

    def _hand_over(self, at: int) -> None:
        logp, kl = self._logp, self._kl
        self._logp, self._kl = [], []
        self._remaining.remove(at)
        if self.tick is not None:
            self.tick(self.rows)
        reduce = self.dynamics.reduce
        self.visit(at, pooled(logp, reduce), pooled(kl, reduce) if kl else None)

    def _remember(self, at: int, stream: int, mean: Tensor) -> None:
        streams = self.tape.reference.setdefault(at, {})
        if stream not in streams:
            number = len(self.tape.lead[at]) if at in self.tape.lead else len(self.tape)
            streams[stream] = mean.new_zeros((number, *mean.shape[1:]))
        streams[stream][self.states.to(mean.device)] = mean.detach()


class Looking:
    """The walk that takes the velocity of given states at one iteration, or hands final states to the decoder."""

    def __init__(self, states: Streams, iteration: int | None, streams: int = 1):
        self.states, self.iteration, self.streams = states, iteration, streams
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
