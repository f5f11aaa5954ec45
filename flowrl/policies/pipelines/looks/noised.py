"""Looks at finished samples that are noised again: states of any level, made of x_0 and fresh noise.

How a level is asked about is told in levels.py.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flowrl.contracts import Field
from flowrl.policies.errors import PolicyError
from flowrl.policies.noise import Key, step_noise
from flowrl.policies.pipelines.calls.passes import PipelinePasses
from flowrl.policies.pipelines.looks.levels import Answer
from flowrl.policies.pipelines.steps.coordinates import Coordinates, coordinates
from flowrl.policies.pipelines.steps.intercepted import Path
from flowrl.policies.pipelines.walks.trajectory import Streams, Trajectory
from flowrl.policies.pipelines.walks.visit_writer import WHOLLY_NOISE


class Noised(NamedTuple):
    """Samples at a level, by stream."""

    x: Streams
    x0: Streams
    target: Streams


def noised(
    trajectory: Trajectory, rows: Tensor, column: int, at: Coordinates, *, share: bool, own: bool = False
) -> Noised:
    """The samples rows, int64 [r], at the level of a column, with fresh noise of each, or shared by those of a prompt.

    own: with the noise that they came from instead. Raises PolicyError where that is not known. A token that its
    pipeline never walks at that level, a condition, is at the highest that it has.
    """
    if own and not trajectory.initial:
        raise PolicyError(
            "the noise that samples came from is not known, as the walk begins below noise level "
            f"{WHOLLY_NOISE:g}: set objective.loss.own_noise=false"
        )
    keys = [_key(trajectory, int(row), share) for row in rows]
    x, clean, target = {}, {}, {}
    for stream, states in trajectory.clean.items():
        x0 = states[rows.to(states.device)].float()
        if own:
            noise = trajectory.initial[stream][rows.to(states.device)].float()
        else:
            noise = step_noise(keys, column, stream, x0.shape[1:], x0.device, use="noised")
        x[stream], clean[stream] = at.signal * x0 + at.level * noise, x0
        if stream in trajectory.token_levels:
            most = trajectory.token_levels[stream][rows // len(trajectory.tree.leaves)].to(x0)
            level = most.clamp(max=at.level)
            x[stream] = (1 - level) * x0 + level * noise
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


def field(rows: Tensor, column: int, at: Coordinates, made: Noised, answer: Answer) -> Field:
    """The Field of a look at noised samples rows, int64 [r]."""
    x, v, x0, target = (merge_streams(streams) for streams in (made.x, answer.velocity, made.x0, made.target))
    share = None
    if any(kept is not None for kept in answer.kept.values()):
        masks = {s: torch.ones_like(answer.x[s], dtype=torch.bool) if k is None else k for s, k in answer.kept.items()}
        kept = merge_streams(masks)
        x, v, x0, target = (part.where(kept, 0.0) for part in (x, v, x0, target))
        share = kept.flatten(1).float().mean(1)
    return Field(rows, torch.tensor([column]), at.level, x, v, x0, target, at.unit, signal=at.signal, share=share)


def level_of(passes: PipelinePasses, path: Path, level: float) -> Coordinates:
    """The coordinates of a level, of those that the model knows the nearest where it knows a table of them."""
    known = passes.pipe.scheduler.nearest(level) if path == "preserving" else level
    if path == "exploding" and not known < 1:
        raise PolicyError(f"level {level:g}: a path of levels above 1 begins where no signal is left; give one below 1")
    assert math.isfinite(known)
    return coordinates(path, known)
