"""A reference that is called as a pipeline of its own: another model, or the same one called otherwise.

It looks at what the policy drew: the same states at the same noise levels, from which its own Gaussians follow. That
needs latents of one shape, one table of levels, and one initial noise, which `check_teacher` compares before training.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from flowrl.contracts import Prompt, Rollout
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import Key
from flowrl.policies.pipelines.calls.passes import PipelinePasses, WalkPlan
from flowrl.policies.pipelines.steps.intercepted import Path, Step
from samplers.plan import Table

START_TOLERANCE, START_TOLERANCE_HALF = 1e-4, 3e-2  # of the initial noise, whose size is 1
LEVEL_TOLERANCE = 1e-4

if TYPE_CHECKING:
    from flowrl.policies.pipelines.policy import PipelinePolicy


class Teacher(NamedTuple):
    """A reference that is a policy of its own, and of which prompts it looks at the samples."""

    policy: "PipelinePolicy"
    takes: Callable[[Prompt], bool] = lambda prompt: True


def by_teacher(
    teachers: Sequence[Teacher], rollout: Rollout, rows: Tensor
) -> "Iterator[tuple[PipelinePolicy, Tensor]]":
    """Each teacher with those of the rows int64 [r] that it looks at: the first that takes a row's prompt.

    Raises PolicyError for a prompt that none takes.
    """
    prompts = rollout.replay.prompts
    each = len(rollout.rollout_logp) // len(prompts)
    whose = []
    for row in rows.tolist():
        prompt = prompts[row // each]
        at = next((i for i, teacher in enumerate(teachers) if teacher.takes(prompt)), None)
        if at is None:
            raise PolicyError(f"reference: none of them takes the prompt {prompt.text!r}; widen a reference's `when`")
        whose.append(at)
    for i, teacher in enumerate(teachers):
        if (mine := rows[torch.tensor(whose) == i]).numel():
            yield teacher.policy, mine


class Levels:
    """A walk of one row that notes where each step is and stays at the initial noise."""

    rows = 1

    def __init__(self, table: Table):
        self.table = table
        self.shapes: dict[tuple[int, int], tuple[int, ...]] = {}  # by iteration and stream
        self.levels: dict[tuple[int, int], tuple[Path, Tensor, Tensor]] = {}
        self.start: dict[int, Tensor] = {}

    def is_real(self, iteration: int) -> bool:
        """Every iteration runs."""
        return True

    def skipped_state(self, iteration: int, stream: int) -> Tensor:
        """Never asked for."""
        raise AssertionError("nothing is skipped")

    def step(self, step: Step) -> Tensor:
        """The state as it is."""
        at = step.iteration, step.stream
        self.shapes[at] = tuple(step.x.shape[1:])
        s, s_next = (torch.as_tensor(s).detach().float().cpu() for s in (step.s, step.s_next))
        self.levels[at] = step.path, s, s_next
        self.start.setdefault(step.stream, step.x.detach().float().cpu())
        return step.x


def check_teacher(student: PipelinePasses, teacher: PipelinePasses, prompt: Prompt, plan: WalkPlan) -> None:
    """Raises PolicyError where the teacher cannot take up the student's states: other latents, levels or noise."""
    table = plan.tree(1).tables[0]
    walks = []
    for passes in (student, teacher):
        walk = Levels(table)
        with torch.no_grad():
            passes.run(walk, [prompt], [Key(0, prompt.id, 0)], steps=plan.num_steps)
        walks.append(walk)
    own, other = walks
    names = type(teacher.source).__name__, type(student.source).__name__
    if own.shapes != other.shapes:
        shapes = [sorted({str(list(shape)) for shape in walk.shapes.values()}) for walk in (other, own)]
        raise PolicyError(
            f"reference: {names[0]} walks latents of shape {', '.join(shapes[0])} in {len(other.shapes)} steps, the "
            f"trained {names[1]} of shape {', '.join(shapes[1])} in {len(own.shapes)}; give a model with the same "
            "latents, and the same height, width and frames in reference.pipeline"
        )
    for at, (path, *levels) in own.levels.items():
        there, *theirs = other.levels[at]
        same = all(
            a.shape == b.shape and torch.allclose(a, b, atol=LEVEL_TOLERANCE)
            for a, b in zip(levels, theirs, strict=True)
        )
        if there != path or not same:
            raise PolicyError(
                f"reference: at step {at[0]} {names[0]} goes from noise level {_shown(theirs)} ({there}), the trained "
                f"{names[1]} from {_shown(levels)} ({path}); give a model whose scheduler has the same table, or set "
                "sampler.schedule"
            )
    half = any(p.dtype not in (torch.float32, torch.float64) for m in student.modules.values() for p in m.parameters())
    gap = max(float((own.start[s] - other.start[s]).abs().max()) for s in own.start)
    if not gap <= (START_TOLERANCE_HALF if half else START_TOLERANCE):
        raise PolicyError(
            f"reference: {names[0]} begins from another noise than the trained {names[1]} (by {gap:.2g}), so that it "
            "cannot take up its first step; give a model that draws its latents in the same way"
        )
    if student.keeper.skip and not teacher.keeper.skip:
        raise PolicyError(
            f"reference: {names[0]} has to run every step before the one that is looked at, whose states the rollout "
            f"of {names[1]} does not keep; give another model"
        )


def _shown(levels: list[Tensor]) -> str:
    return " to ".join(f"{float(level.max()):.4g}" for level in levels)
