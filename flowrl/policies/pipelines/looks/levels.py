"""How a pipeline is asked about a noise level by itself, and the proof that the answer is the velocity of its walk.

A level is asked about through the pipeline's own call: the steps before it are skipped, and the state that is asked
about handed on in their place. Guidance, packing and conditions are those of the pipeline by construction, as in a
replay. There are two ways, of which the first that is proved is taken: on a table of two steps, of which the second
begins at the level; and on the pipeline's own table with the level in place of the one above it, for pipelines that
count their steps (guidance that ends early, image-to-image, conditions that are noised anew at every step).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flowrl.contracts import Prompt
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import Key
from flowrl.policies.pipelines.calls.passes import PipelinePasses
from flowrl.policies.pipelines.steps.intercepted import Step
from flowrl.policies.pipelines.walks.replay import LookWalk
from flowrl.policies.pipelines.walks.trajectory import Streams
from samplers.levels import highest
from samplers.plan import OwnTable, Table
from samplers.renoising import signal
from samplers.tables import At

LOOK_TOLERANCE = 1e-3  # of a velocity, relative to the largest of the rollout's own
LOOK_TOLERANCE_HALF = 3e-2  # the same where the model computes in half precision
REMEDY = "choose an objective of the clipped kind"


@dataclass(frozen=True)
class Asking:
    """A way to ask about levels: on the own levels [N + 1], of which the walk begins at step `begins`, or by two steps.

    below: the level that those asked about must not be above; the walk's first step is not asked about alike.
    """

    own: Tensor
    begins: int | None = None
    below: float = float("inf")

    def walk(self, states: Streams, level: float) -> tuple[LookWalk, int]:
        """The walk that takes the velocity at states of a level, and the steps that the pipeline is asked for."""
        table = At(level, self.begins)
        steps = len(self.own) - 1
        at = 1 if self.begins is None else table.place(self.own) - self.begins
        return LookWalk(states, at, len(states), table), table.num_steps(steps)


class Answer(NamedTuple):
    """Velocities by stream, the states that they were found at, and which of their elements belong to that level.

    kept: bool like x, False where the pipeline itself overwrites the state, as around an inpainted region, or holds it
    at a level of its own, as a condition; None where all do.
    """

    velocity: Streams
    x: Streams
    kept: dict[int, Tensor | None]


def look_at(
    passes: PipelinePasses, asking: Asking, states: Streams, prompts: list[Prompt], starts: list[Key], level: float
) -> Answer:
    """The velocities at these states of one level, a row a prompt; with gradient where it is enabled.

    Raises PolicyError for a level that this pipeline cannot be asked about by itself.
    """
    name = type(passes.source).__name__
    if level > asking.below:
        raise PolicyError(
            f"{name}: noise level {level:.4g} belongs to the first step of its walk, which it treats differently from "
            f"others: give levels up to {asking.below:.4g}, or {REMEDY}"
        )
    walk, steps = asking.walk(states, level)
    passes.run(walk, prompts, starts, steps=steps, grad=torch.is_grad_enabled())
    if len(walk.velocity) < len(states):
        raise PolicyError(f"{name}: its loop takes fewer steps than it is asked for: raise sampler.steps, or {REMEDY}")
    seen = {stream: step.x for stream, step in walk.seen.items()}
    return Answer(walk.velocity, seen, {s: _kept(step, level) for s, step in walk.seen.items()})


def _kept(step: Step, level: float) -> Tensor | None:
    if not isinstance(step.s, Tensor):
        return step.kept
    at_level = (step.s > level - 1e-4).expand_as(step.x)
    return at_level if step.kept is None else at_level & step.kept


class _Watching:
    """A walk of the ODE for one row that keeps states, velocities and levels."""

    rows = 1
    table: Table = OwnTable()

    def __init__(self) -> None:
        self.steps: dict[int, dict[int, Step]] = {}  # by iteration and stream
        self.states: dict[int, Streams] = {}  # copies: some pipelines write into what they hand over

    def is_real(self, iteration: int) -> bool:
        """Every iteration runs."""
        return True

    def skipped_state(self, iteration: int, stream: int) -> Tensor:
        """Never asked for."""
        raise AssertionError("nothing is skipped")

    def step(self, step: Step) -> Tensor:
        """Euler's, or DDIM's."""
        self.steps.setdefault(step.iteration, {})[step.stream] = step
        self.states.setdefault(step.iteration, {})[step.stream] = step.x.clone()
        if step.path != "preserving":
            return step.x + step.v * (step.s_next - step.s)
        a, a_next = signal(step.s), signal(step.s_next)
        clean = (step.x - step.s * step.v) / (a + step.s)
        return a_next * clean + step.s_next * (clean + step.v)


@torch.no_grad()
def prove_look(passes: PipelinePasses, prompt: Prompt, steps: int) -> Asking:
    """Compares looks at levels of a walk with the velocities that the walk itself had there; returns the way proved.

    Raises PolicyError where all ways differ, which they do where guidance or denoiser remembers earlier steps.
    """
    walk = _Watching()
    passes.run(walk, [prompt], [Key(0, prompt.id, 0)], steps=steps)
    half = any(p.dtype not in (torch.float32, torch.float64) for m in passes.modules.values() for p in m.parameters())
    tolerance = LOOK_TOLERANCE_HALF if half else LOOK_TOLERANCE
    first, last = walk.steps[0][0], max(walk.steps)
    ways = [Asking(first.own)]
    if first.index + 1 < len(first.own) - 1:
        ways.append(Asking(first.own, first.index))
    worst, where = float("inf"), 0
    for way in ways:
        gaps = {at: _gap(passes, way, walk, at, prompt) for at in sorted({max(last // 2, 1), last - 1, last} - {0, -1})}
        at = max(gaps, key=lambda n: gaps[n], default=0)
        if gaps.get(at, 0.0) <= tolerance:
            if _gap(passes, way, walk, 0, prompt) <= tolerance:
                return way
            if last > 0:
                return Asking(way.own, way.begins, highest(walk.steps[1][0].s))
        if gaps.get(at, 0.0) < worst:
            worst, where = gaps.get(at, 0.0), at
    name, level = type(passes.source).__name__, highest(walk.steps[where][0].s)
    reason = "" if passes.keeper.skip else ", for its guidance or its denoiser remembers earlier steps"
    raise PolicyError(
        f"{name}: asked about noise level {level:.3g} by itself it gives another velocity than in its walk, by "
        f"{worst:.1e} of its size (accepted: {tolerance:.0e}){reason}: {REMEDY}"
    )


def _gap(passes: PipelinePasses, way: Asking, walk: _Watching, at: int, prompt: Prompt) -> float:
    """The distance of a look from the step `at` of a walk, relative to its velocity, where the two have one state.

    Of step 0 only: 0 where the pipeline writes into the state before every step but the first, so that no look can be
    at the first step's own state.
    """
    steps, states = walk.steps[at], walk.states[at]
    try:
        answer = look_at(passes, way, states, [prompt], [Key(0, prompt.id, 0)], highest(steps[0].s))
    except PolicyError:
        return float("inf")
    gap = 0.0
    for stream, step in steps.items():
        kept = answer.kept[stream]
        if kept is not None and not kept.any():
            raise PolicyError(
                f"{type(passes.source).__name__} overwrites its whole state between steps, so that no noised sample is "
                f"looked at: {REMEDY}"
            )
        moved = float((answer.x[stream] - states[stream]).abs().max())
        if at == 0 and kept is not None and moved > LOOK_TOLERANCE:
            continue
        apart = (answer.velocity[stream] - step.v).abs()
        if kept is not None:
            apart = apart.where(kept, 0.0)
        gap = max(gap, float(apart.max() / (1e-6 + step.v.abs().max())))
    return gap
