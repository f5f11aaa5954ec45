"""Determines which rows may share a call of a pipeline: by rollouts of two rows, each of which is replayed alone.

The two are prompts of unequal length with pictures of their own, or one prompt twice with one picture. A pipeline that
treats them together as it does alone may be given any rows; one that does not is given rows of one prompt, or one row
at a time.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from flowrl.contracts import Prompt, View
from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.calls.arguments import has_files
from flowrl.policies.pipelines.calls.passes import PipelinePasses, WalkPlan
from flowrl.policies.pipelines.probing.sharing import ALONE, PICTURES, TEXT, Sharing
from flowrl.policies.pipelines.steps.intercepted import Step
from flowrl.policies.pipelines.walks.replay import ReplayStep, ReplayWalk, replay_steps_by_pass
from flowrl.policies.pipelines.walks.rollout import RolloutWalk
from flowrl.policies.pipelines.walks.trajectory import Trajectory, take
from samplers.plan import Plan

STEPS = 3  # of the loop that run: how rows affect each other shows in the first ones
TOLERANCE = 1e-4  # of the mean of a step, relative to the size of the state
TOLERANCE_CPU = 5e-6  # the same on a CPU, whose kernels change less with the number of rows (measured: up to 2e-6)
TOLERANCE_HALF = 3e-2  # the same where the model computes in half precision
UNFIT = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, PolicyError)


class BeginningWalk(RolloutWalk):
    """The walk of a rollout that runs up to its last trained step; the rest of the loop is skipped."""

    def is_real(self, iteration: int) -> bool:
        """Up to the last trained step."""
        return iteration <= self.tree.trained[-1]


class ComparingReplay(ReplayWalk):
    """A replay that keeps the largest difference of a mean from the one that was drawn from, and the log-probs."""

    def __init__(self, passes: PipelinePasses, trajectory: Trajectory, replay_steps: dict[int, ReplayStep]):
        found: dict[int, Tensor] = {}

        def visit(step: int, _: Tensor, logp: Tensor, *__: Tensor | None) -> None:
            found[step] = logp  # not by way of self: a cycle would keep a whole graph until it is looked for

        super().__init__(trajectory, passes.dynamics, passes.streams_at, replay_steps, visit, View())
        self.worst, self.logp = 0.0, found  # log-probs by step

    def step(self, step: Step) -> Tensor:
        """Compares the mean with the stored one, and scores; returns the next state [R, ...]."""
        replay_step = self.replay_steps[step.iteration]
        mean = self.dynamics.gaussian(step, stochastic=True).mean.detach()
        drawn_from = take(self.trajectory.mean[step.iteration][step.stream], replay_step.states)
        gap = (mean - drawn_from).abs()
        kept = self.trajectory.keep.get(step.iteration, {}).get(step.stream)
        if kept is not None:
            gap = gap * take(kept, replay_step.drawn)
        size = float(gap.max() / (1 + drawn_from.abs().max()))
        self.worst = max(self.worst, size if size == size else float("inf"))
        return super().step(step)


def find_sharing(passes: PipelinePasses, prompt: Prompt, plan: WalkPlan, *, half: bool) -> Sharing:
    """How rows may share calls: the first of the ways in sharing.py under which rows are independent.

    What a pipeline draws from the global generator belongs to the first row of a call, however little it changes the
    others (the posterior of a trained autoencoder is narrow): its rows have a call each.
    """
    if passes.max_rows == 1 or passes.global_use.seen:
        return ALONE
    usable = sorted(passes.streams)
    trained = tuple(usable[:-1] or usable)[:STEPS]
    few = Plan(plan.num_steps, trained, trained)
    with _unequal(prompt) as unequal:
        for sharing in PICTURES if has_files(prompt) else TEXT:
            passes.sharing = sharing
            tried = [([prompt], 2)] + ([(unequal, 1)] if sharing.rows == "any" else [])
            if all(_rows_are_independent(passes, *rows, few, half) for rows in tried):
                return sharing
    return ALONE


def _rows_are_independent(passes: PipelinePasses, prompts: list[Prompt], group: int, plan: Plan, half: bool) -> bool:
    """Whether each of two rows is the same when replayed alone as next to the other."""
    try:
        accepted = TOLERANCE_CPU if passes.device.type == "cpu" else TOLERANCE
        return batching_gap(passes, prompts, group, plan) <= (TOLERANCE_HALF if half else accepted)
    except torch.OutOfMemoryError:
        raise
    except UNFIT:  # it does not take two rows this way
        return False


def batching_gap(passes: PipelinePasses, prompts: list[Prompt], group: int, plan: Plan) -> float:
    """The largest distance of a step's mean in a replay of a row alone from that in a call of all these rows.

    Relative to the size of the state. Raises PolicyError if the call does not return one sample per row.
    """
    trajectory = Trajectory(prompts, plan.tree(group), 0, complete=not passes.keeper.skip)
    rollout_walk = BeginningWalk(trajectory, passes.dynamics, passes.streams_at, keep_means=True)
    (part,) = trajectory.tree.passes()
    rollout_walk.begin(part)
    with torch.no_grad():
        passes.media(passes.walk(rollout_walk, trajectory), len(trajectory))
        rollout_walk.result()
        return max(
            compare_alone(passes, trajectory, row, {plan.trained[0], plan.trained[-1]}).worst
            for row in range(len(trajectory))
        )


def compare_alone(
    passes: PipelinePasses, trajectory: Trajectory, row: int, steps: set[int], *, grad: bool = False
) -> ComparingReplay:
    """A row of a recorded rollout, replayed alone at these steps, each in a call of its own."""
    whole: ComparingReplay | None = None
    for step in sorted(steps):
        (replay_steps,) = replay_steps_by_pass(trajectory, torch.tensor([row]), steps=[step])
        walk = ComparingReplay(passes, trajectory, replay_steps)
        passes.walk(walk, trajectory, grad=grad)
        if whole is not None:
            walk.worst, walk.logp = max(walk.worst, whole.worst), walk.logp | whole.logp
        whole = walk
    assert whole is not None, "there is a step to compare"
    return whole


@contextlib.contextmanager
def _unequal(prompt: Prompt) -> Iterator[list[Prompt]]:
    """A longer prompt and this one, each with pictures of its own."""
    with tempfile.TemporaryDirectory() as folder:
        turned = []
        for i, path in enumerate(prompt.media):
            turned.append(str(path))
            with contextlib.suppress(OSError), Image.open(path) as picture:  # clips and sounds stay as they are
                turned[-1] = str(Path(folder) / f"{i}.png")
                picture.convert("RGB").transpose(Image.Transpose.ROTATE_180).save(turned[-1])
        text = " ".join([prompt.text] * 3)
        yield [replace(prompt, id=prompt.id + "/longer", text=text, media=tuple(turned)), prompt]
