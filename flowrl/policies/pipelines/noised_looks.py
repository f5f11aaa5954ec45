"""Looks at finished samples that are noised again: states of any level, made of x_0 and fresh noise.

A level is asked about through the pipeline's own call, on a table of two steps of which the second begins there; the
first is skipped, and the state that is asked about handed on in its place. Guidance, packing and conditions are those
of the pipeline by construction, as in a replay. That the answer is the velocity of a rollout is proved once.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flowrl.contracts import Field, Prompt
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import Key, step_noise
from flowrl.policies.pipelines.intercepted_step import Path, Step
from flowrl.policies.pipelines.passes import PipelinePasses
from flowrl.policies.pipelines.replay_walk import LookWalk
from flowrl.policies.pipelines.trajectory import Streams, Trajectory
from samplers.plan import OwnTable, Table
from samplers.renoising import signal
from samplers.tables import At

LOOK_TOLERANCE = 1e-3  # of a velocity, relative to the largest of the rollout's own
LOOK_TOLERANCE_HALF = 3e-2  # the same where the model computes in half precision


class Coordinates(NamedTuple):
    """What a level in (0, 1] is on a path: x = signal * x_0 + level * eps, and v = eps - x_0, or eps alone."""

    level: float
    signal: float
    less_clean: bool  # whether the velocity is eps - x_0

    @property
    def unit(self) -> float:
        """What x - level * v is divided by to give x_0."""
        return self.signal + self.level if self.less_clean else 1.0


def coordinates(path: Path, level: float) -> Coordinates:
    """Those of a level: the share of noise on the path of a flow, elsewhere its amplitude or the same ratio."""
    if path == "preserving":
        return Coordinates(level, float(signal(level)), True)
    if path == "exploding":
        return Coordinates(level / (1 - level), 1.0, False)
    return Coordinates(level, 1 - level, True)


class Noised(NamedTuple):
    """Samples at a level, by stream."""

    x: Streams
    x0: Streams
    target: Streams


def noised(trajectory: Trajectory, rows: Tensor, column: int, at: Coordinates, *, share: bool) -> Noised:
    """The samples rows, int64 [r], at the level of a column, with noise of their own or shared by those of a prompt."""
    keys = [_key(trajectory, int(row), share) for row in rows]
    x, clean, target = {}, {}, {}
    for stream, states in trajectory.clean.items():
        x0 = states[rows.to(states.device)].float()
        noise = step_noise(keys, column, stream, x0.shape[1:], x0.device, use="noised")
        x[stream], clean[stream] = at.signal * x0 + at.level * noise, x0
        target[stream] = noise - x0 if at.less_clean else noise
    return Noised(x, clean, target)


def _key(trajectory: Trajectory, row: int, share: bool) -> Key:
    leaves = trajectory.tree.leaves
    prompt, leaf = divmod(row, len(leaves))
    member = 0 if share else trajectory.tree.segments[leaves[leaf]].member
    return Key(trajectory.seed, trajectory.prompts[prompt].id, trajectory.first + member, trajectory.copies[prompt])


def merge_streams(streams: Streams) -> Tensor:
    """The states of several streams as one tensor [r, ...]: flattened if there is more than one."""
    parts = [streams[stream] for stream in sorted(streams)]
    return parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], 1)


def field(rows: Tensor, column: int, at: Coordinates, made: Noised, velocity: Streams) -> Field:
    """The Field of a look at noised samples rows, int64 [r]."""
    x, v, x0, target = (merge_streams(streams) for streams in (made.x, velocity, made.x0, made.target))
    return Field(rows, torch.tensor([column]), at.level, x, v, x0, target, at.unit, signal=at.signal)


class _Watching:
    """A walk of the ODE for one row that keeps states, velocities and levels."""

    rows = 1
    table: Table = OwnTable()

    def __init__(self) -> None:
        self.steps: dict[int, dict[int, Step]] = {}  # by iteration and stream

    def is_real(self, iteration: int) -> bool:
        """Every iteration runs."""
        return True

    def skipped_state(self, iteration: int, stream: int) -> Tensor:
        """Never asked for."""
        raise AssertionError("nothing is skipped")

    def step(self, step: Step) -> Tensor:
        """Euler's, or DDIM's."""
        self.steps.setdefault(step.iteration, {})[step.stream] = step
        if step.path != "preserving":
            return step.x + step.v * (step.s_next - step.s)
        a, a_next = signal(step.s), signal(step.s_next)
        clean = (step.x - step.s * step.v) / (a + step.s)
        return a_next * clean + step.s_next * (clean + step.v)


@torch.no_grad()
def prove_look(passes: PipelinePasses, prompt: Prompt, steps: int) -> None:
    """Compares a look at two levels of a walk with the velocities that the walk itself had there.

    Raises PolicyError where they differ, and where the pipeline's denoiser remembers earlier steps.
    """
    name, start = type(passes.source).__name__, [Key(0, prompt.id, 0)]
    remedy = "choose an objective of the clipped kind"
    if not passes.keeper.skip:
        raise PolicyError(
            f"{name}: its denoiser leaves something behind from step to step, so that it cannot be asked about a noise "
            f"level by itself: {remedy}"
        )
    walk = _Watching()
    passes.run(walk, [prompt], start, steps=steps)
    half = any(p.dtype not in (torch.float32, torch.float64) for m in passes.modules.values() for p in m.parameters())
    tolerance = LOOK_TOLERANCE_HALF if half else LOOK_TOLERANCE
    last = max(walk.steps)
    for at in sorted({last // 2, max(last - 1, 0)}):
        streams = walk.steps[at]
        looked_at = look_at(passes, {s: step.x for s, step in streams.items()}, [prompt], start, streams[0].s)
        gap = max(
            float((looked_at[s] - step.v).abs().max() / (1e-6 + step.v.abs().max())) for s, step in streams.items()
        )
        if not gap <= tolerance:
            raise PolicyError(
                f"{name}: asked about noise level {float(streams[0].s):.3g} by itself it gives another velocity than "
                f"in its walk, by {gap:.1e} of its size (accepted: {tolerance:.0e}): {remedy}"
            )


def look_at(
    passes: PipelinePasses, states: Streams, prompts: list[Prompt], starts: list[Key], level: float | Tensor
) -> Streams:
    """The velocities at these states of one level, a row a prompt; with gradient where it is enabled."""
    walk = LookWalk(states, 1, len(states), At(float(level)))
    passes.run(walk, prompts, starts, steps=2, grad=torch.is_grad_enabled())
    if len(walk.velocity) < len(states):
        raise PolicyError(
            f"{type(passes.source).__name__}: of two steps its loop takes one, so that it cannot be asked about a "
            "noise level by itself (image-to-image skips steps: set pipeline.strength=1), or choose an objective of "
            "the clipped kind"
        )
    return walk.velocity


def level_of(passes: PipelinePasses, path: Path, level: float) -> Coordinates:
    """The coordinates of a level, of those that the model knows the nearest where it knows a table of them."""
    known = passes.pipe.scheduler.nearest(level) if path == "preserving" else level
    if path == "exploding" and not known < 1:
        raise PolicyError(f"level {level:g}: a path of levels above 1 begins where no signal is left; give one below 1")
    assert math.isfinite(known)
    return coordinates(path, known)
