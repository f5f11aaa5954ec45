"""Looks at states that a walk of the ODE went through, and at samples with the noise of their walk put in again.

What a reward says of a finished sample reaches the weights through the velocities along its walk. A step leads from x
to carry * x + gain * v, on the path of a flow with carry 1 and gain s_next - s, so that its share of a gradient needs
no more than the state that it began from. A leap leads further, and the same holds for it. Among these columns, a plain
level is a finished sample with fresh noise. How a level is asked about is told in levels.py.
"""

from functools import partial

import torch
from torch import Tensor

from flowrl.contracts import Field, Finished, Progress, Prompt, Samples, View, Visit
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import Key
from flowrl.policies.pipelines.calls.layouts import sample_rate
from flowrl.policies.pipelines.calls.passes import PipelinePasses
from flowrl.policies.pipelines.looks.levels import Asking, look_at
from flowrl.policies.pipelines.looks.noised import level_of, noised
from flowrl.policies.pipelines.steps.coordinates import coordinates
from flowrl.policies.pipelines.walks.replay import LookWalk
from flowrl.policies.pipelines.walks.trajectory import Trajectory, take
from samplers.direct_align import injected
from samplers.visits import Injected, Visited


def look_at_visited(
    passes: PipelinePasses,
    asking: Asking,
    trajectory: Trajectory,
    rows: Tensor,
    view: View,
    visit: Visit,
    progress: Progress | None = None,
) -> None:
    """Shows the samples `rows` by parts that may share a call, and of each the columns, last first.

    Raises PolicyError for a pipeline that steps several latents at once.
    """
    if len(trajectory.clean) > 1:
        raise PolicyError(
            f"{type(passes.source).__name__} steps {len(trajectory.clean)} latents at once, which no gradient of a "
            "reward goes through: choose an objective of the clipped kind"
        )
    each = len(trajectory.tree.leaves)
    for part in passes.sharing.split([row // each for row in rows.tolist()]):
        mine = rows[torch.tensor(part)]
        whose = [divmod(row, each) for row in mine.tolist()]
        prompts = [trajectory.prompts[p] for p, _ in whose]
        starts = [trajectory.start(p, trajectory.tree.leaves[i]) for p, i in whose]
        show = partial(_decoded, passes, prompts, starts, trajectory.tree.num_steps, mine // each)
        if view.states == "finished":
            last, end = (trajectory.judged, 0.0) if trajectory.judged else (trajectory.clean, trajectory.end)
            unit = coordinates(trajectory.path, end).unit
            visit(Finished(mine, take(last[0], mine).float(), show, unit))
            continue
        for column in reversed(range(len(trajectory.levels))):
            bare = _state(passes, trajectory, mine, column)
            x = bare.x.requires_grad_(view.nested and bare.through > 0 and torch.is_grad_enabled())
            v = look_at(passes, asking, {0: x}, prompts, starts, bare.level).velocity[0]
            if progress is not None:
                progress(len(mine))
            visit(Field(**vars(bare) | {"v": v, "show": show}))


def _state(passes: PipelinePasses, trajectory: Trajectory, rows: Tensor, column: int) -> Field:
    """A column's states of these samples and what is known of them, still without a velocity."""
    at, to = level_of(passes, trajectory.path, trajectory.levels[column]), trajectory.ends[column]
    x0, what = take(trajectory.clean[0], rows).float(), trajectory.tree.levels[column]
    carry, gain, through = 1.0, 0.0, 1.0
    if isinstance(what, Visited):
        x, through = take(trajectory.walked[column][0], rows).float().clone(), what.through
        carry = coordinates(trajectory.path, to).unit / at.unit
        gain = (to - carry * at.level) * trajectory.factors[column]
    elif isinstance(what, Injected):
        x = injected(x0, take(trajectory.initial[0], rows).float(), at.level)
        gain = (to - at.level) / (1 - to)
    else:
        x = noised(trajectory, rows, column, at, share=False).x[0]
    target = (x - at.unit * x0) / at.level
    return Field(rows, torch.tensor([column]), at.level, x, x, x0, target, at.unit, carry, gain, to, through=through)


def _decoded(
    passes: PipelinePasses, prompts: list[Prompt], starts: list[Key], steps: int, group: Tensor, x: Tensor
) -> Samples:
    """The samples that final states [r, ...] stand for, with gradient to them where it is enabled."""
    output = passes.run(LookWalk({0: x}, None), prompts, starts, steps=steps, grad=torch.is_grad_enabled())
    made = passes.media(output, len(prompts))
    return Samples(
        prompts,
        group,
        images=made.get("images"),
        video=made.get("video"),
        audio=made.get("audio"),
        sample_rate=sample_rate(passes.source) if "audio" in made else None,
    )
