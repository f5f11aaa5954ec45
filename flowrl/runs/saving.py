"""Points from which a run can resume: its state between two iterations, marked in memory and saved as a checkpoint.

A stop in the middle of an iteration returns to the mark, as long as no weight has changed since.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowrl.contracts import ALONE, Policy, Ranks
from flowrl.core.learning.learner import Learner
from flowrl.core.values import Critic
from flowrl.policies import adapters
from flowrl.recipe.schema import Recipe
from flowrl.runs import checkpoints
from flowrl.runs import resume as resuming
from flowrl.runs.folder import RunFolder
from flowrl.runs.run_state import RunState
from flowrl.runs.shares import sharded_as, sharing_of
from flowrl.runs.stopping import Stopped
from flowrl.runs.together import OwnStates


class DivergedError(RuntimeError):
    """The weights or the optimizer of a run are not finite; they are not saved."""


@dataclass
class Saving:
    """The mark and the checkpoints of a run. prompts: digests of its training and held-out prompts.

    critic: saved with its learner too, where there is one. ranks: they mark the same points; the first one writes."""

    recipe: Recipe
    policy: Policy
    learner: Learner
    folder: RunFolder
    state: RunState
    prompts: Mapping[str, str]
    critic: Critic | None = None
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        self.checkpoints = checkpoints.Checkpoints(self.folder.path, self.recipe.checkpoint.keep)
        self._marked: dict[str, Any] = {}
        self._own = OwnStates(self.ranks, self.recipe.seed)
        self._saved: tuple[int, int] | None = None  # iteration and number of evaluations of the last checkpoint

    def mark(self) -> None:
        """Records everything but weights and learner."""
        self._marked = self.state.state_dict() | {"files": self.folder.position(), "prompts": dict(self.prompts)}
        self._marked |= self._own.marked()
        self._steps = self._steps_taken()

    @property
    def unmoved(self) -> bool:
        """Whether the weights are still those of the mark."""
        return self._steps_taken() == self._steps

    def _steps_taken(self) -> int:
        return self.learner.steps + (0 if self.critic is None else self.critic.learner.steps)

    def save(self) -> bool:
        """Saves the mark unless it is already saved; returns whether it is saved.

        If weights are not finite, raises DivergedError, or returns False if an alarm will roll back.
        """
        iteration = self._marked["iteration"]
        if self._saved == self._version(self._marked):
            return True
        sharing = sharing_of(self.ranks)
        if sharing is not None:
            sharing.rounds.rest()  # no weights are gathered behind this
        weights = {"parameters": adapters.trainable_by_name(self.policy.modules), "learner": self.learner.state_dict()}
        weights |= {} if self.critic is None else {"critic": critic_state(self.critic)}
        try:
            refuse_nonfinite(weights, iteration, self.checkpoints, self.recipe, sharing)
        except DivergedError:
            if self.state.ended(self.recipe.train) or self.recipe.watch.on_alarm != "rollback":
                raise
            return False
        if self.ranks.rank == 0:
            self.folder.sync()
        if self.ranks.rank == 0 or sharing is not None:
            self.checkpoints.save(iteration, {"mark": self._marked, **weights}, sharing)
        self._saved = self._version(self._marked)
        return True

    def save_unmoved(self, error: BaseException | None = None) -> None:
        """Saves if the weights are still those of the mark and finite.

        error: what ends the run. Ranks that hold parts of the weights need each other to save, so that what ends one
        of them alone leaves their last checkpoint.
        """
        alone = error is not None and not isinstance(error, Stopped)
        if self.unmoved and not (alone and sharing_of(self.ranks) is not None):
            with contextlib.suppress(DivergedError):
                self.save()

    def keep(self, name: str, iteration: int | None) -> None:
        """Saves the current checkpoint and marks it with this name, if `iteration` is the current one."""
        if iteration == self.state.iteration and self.save() and self.ranks.rank == 0:
            self.checkpoints.mark(name, self.state.iteration)

    def forget_after(self, iteration: int, marks: Mapping[str, int | None]) -> None:
        """Removes the checkpoints after `iteration`; see `Checkpoints.forget_after`."""
        if self.ranks.rank == 0:
            self.checkpoints.forget_after(iteration, marks)

    def forget(self) -> None:
        """Makes the next `save` write although this iteration is saved, because the weights have been replaced."""
        self._saved = None

    def restore(self, checkpoint: checkpoints.Checkpoint) -> None:
        """Restores weights, learner and state of a checkpoint, and truncates the folder to its state at that time."""
        like = sharded_as(self.policy, self.learner, self.critic, self.ranks)
        saved = checkpoints.load(checkpoint, like=like)
        resuming.fill_parameters(adapters.trainable_by_name(self.policy.modules), saved["parameters"], checkpoint)
        self.learner.load_state_dict(saved["learner"])
        if self.critic is not None:
            restore_critic(self.critic, saved, checkpoint)
        mark = saved["mark"]
        self.state.load_state_dict(mark)
        self._own.restore(mark)
        self.folder.rewind(mark["files"], mark["iteration"], mark["evaluated"])
        self._saved = self._version(mark)

    @staticmethod
    def _version(mark: Mapping[str, Any]) -> tuple[int, int]:
        return mark["iteration"], len(mark["evaluated"])


def critic_state(critic: Critic) -> dict[str, Any]:
    """A critic's weights by name, and the state of its learner."""
    return {
        "parameters": adapters.trainable_by_name(critic.looks.modules),
        "learner": critic.learner.state_dict(),
    }


def restore_critic(critic: Critic, saved: Mapping[str, Any], checkpoint: checkpoints.Checkpoint) -> None:
    """Restores a critic from a saved state; one that a checkpoint does not know begins anew."""
    if "critic" in saved:
        own = adapters.trainable_by_name(critic.looks.modules)
        resuming.fill_parameters(own, saved["critic"]["parameters"], checkpoint)
        critic.learner.load_state_dict(saved["critic"]["learner"])


def refuse_nonfinite(
    weights: Mapping[str, Any],
    iteration: int,
    kept: checkpoints.Checkpoints,
    recipe: Recipe,
    sharing: Ranks | None = None,
) -> None:
    """Raises DivergedError if a state is not finite, so that it does not replace checkpoints that are.

    sharing: those who hold parts of it, where not all of it is here."""
    bad = next(checkpoints.nonfinite_tensors(weights), None)
    if sharing is not None:
        bad = next((one for one in sharing.gather(bad) if one is not None), None)
    if bad is not None:
        before = [checkpoint.path for checkpoint in kept.all() if checkpoint.iteration < iteration]
        rest = f"{before[-1]} is from before: resume from there with --resume" if before else "start over"
        raise DivergedError(
            f"iteration {iteration}: {bad} is not finite, so it is not saved; {rest}, with train.lr below "
            f"{recipe.train.lr:g} or train.max_grad_norm below {recipe.train.max_grad_norm or float('inf'):g}"
        )
