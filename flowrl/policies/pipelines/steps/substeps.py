"""A teacher that takes several steps of its ODE to one of the student's: few-step students.

Between a state x of the student's walk at level s and the next level it takes `number` equal steps,

    x_0 = x,   x_{k+1} = x_k + v_T(x_k, s + k d) d,   d = (s_next - s) / number,

which lead as far as one step of the mean velocity (x_number - x) / (s_next - s) does. The teacher's Gaussian is that of
the step with this velocity, so that its distance from the student's is, as with one step, the velocity's error over the
step's variance.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import Progress, Prompt, View
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import Key
from flowrl.policies.pipelines.calls.passes import PipelinePasses, WalkPlan
from flowrl.policies.pipelines.looks.levels import REMEDY, Asking, look_at, prove_look
from flowrl.policies.pipelines.steps.dynamics import Dynamics
from flowrl.policies.pipelines.steps.intercepted import EndOfWalk, Step
from flowrl.policies.pipelines.teacher import Levels
from flowrl.policies.pipelines.walks.replay import ReplayStep, ReplayWalk, Visit
from flowrl.policies.pipelines.walks.trajectory import Trajectory

_ONE = "set reference.steps=1"


class _Noting(ReplayWalk):
    """A replay that keeps its steps."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.steps: list[Step] = []

    def step(self, step: Step) -> Tensor:
        self.steps.append(replace(step, x=step.x.clone(), v=step.v.clone()))
        return super().step(step)


@dataclass(frozen=True)
class Substeps:
    """How many steps a teacher takes to one of the student's, and how it is asked about the levels between."""

    number: int
    asking: Asking

    def replay(
        self,
        passes: PipelinePasses,
        trajectory: Trajectory,
        dynamics: Dynamics,
        streams: Callable[[int], int],
        replay_steps: dict[int, ReplayStep],
        visit: Visit,
        view: View,
        progress: Progress | None = None,
    ) -> None:
        """As the walk of a `ReplayWalk` of these arguments, each step with the teacher's mean velocity. No gradient."""
        plain = trajectory, dynamics, streams, replay_steps
        noting = _Noting(*plain, lambda *_: None, View(weights="reference"), progress=progress)
        passes.walk(noting, trajectory)
        leads = noting.leads()
        prompts = [trajectory.prompts[p] for p, _ in leads]
        starts = [trajectory.start(p, i) for p, i in leads]
        scoring = ReplayWalk(*plain, visit, view)
        for step in noting.steps:
            v = self._mean_velocity(passes, step, prompts, starts, progress)
            with contextlib.suppress(EndOfWalk):
                scoring.step(replace(step, v=v))

    def _mean_velocity(
        self, passes: PipelinePasses, step: Step, prompts: list[Prompt], starts: list[Key], progress: Progress | None
    ) -> Tensor:
        s, s_next = float(step.s), float(step.s_next)
        length, x, v, total = (s_next - s) / self.number, step.x, step.v, step.v
        for k in range(1, self.number):
            x = x + v * length
            v = look_at(passes, self.asking, {0: x}, prompts, starts, s + k * length).velocity[0]
            total = total + v
            if progress is not None:
                progress(len(x))
        return total / self.number


def prove_substeps(teacher: PipelinePasses, prompt: Prompt, plan: WalkPlan, number: int) -> Substeps:
    """Raises PolicyError where there are no levels between two of the teacher's table, or none that it can be asked
    about."""
    name, walk = type(teacher.source).__name__, Levels(plan.tree(1).tables[0])
    with torch.no_grad():
        teacher.run(walk, [prompt], [Key(0, prompt.id, 0)], steps=plan.num_steps)
    problem = None
    if any(path == "preserving" for path, *_ in walk.levels.values()):
        problem = "walks the noise table of its model, which has no levels between"
    elif any(level.dim() for _, *levels in walk.levels.values() for level in levels):
        problem = "has a noise level a token"
    elif any(stream for _, stream in walk.levels):
        problem = "steps several latents at once"
    if problem is not None:
        raise PolicyError(f"reference.steps: got {number}, but {name} {problem}; {_ONE}")
    try:
        asking = prove_look(teacher, prompt, plan.num_steps)
    except PolicyError as error:
        raise PolicyError(f"reference.steps: {str(error).replace(REMEDY, _ONE)}") from error
    highest = max(float(s) + (float(s_next) - float(s)) / number for _, s, s_next in walk.levels.values())
    if highest > asking.below:
        raise PolicyError(
            f"reference.steps: got {number}, but {name} treats the first step of its walk unlike others; {_ONE}"
        )
    return Substeps(number, asking)
