"""How a run responds to an alarm: it stops, or rolls back to an earlier checkpoint."""

from collections.abc import Sequence

from flowrl.contracts import ALONE, Policy, Ranks
from flowrl.core.learning.learner import Learner
from flowrl.core.values import Critic
from flowrl.policies import adapters
from flowrl.runs import checkpoints
from flowrl.runs import resume as resuming
from flowrl.runs.saving import restore_critic
from flowrl.runs.shares import sharded_as
from flowrl.watch.alarms import ACTIONS, Alarm
from flowrl.watch.watchdog import Watchdog


class AlarmError(RuntimeError):
    """An alarm has ended the run; everything is saved."""

    @staticmethod
    def from_alarm(alarm: Alarm) -> "AlarmError":
        """The error that names the alarm and what to try."""
        lost = "" if alarm.to is None else f" (no checkpoint of iteration {alarm.to} was kept to return to)"
        return AlarmError(f"stopped by the alarm {alarm.name}{lost}: {alarm.what}; what to try: {alarm.remedy}")


def most_severe(alarms: Sequence[Alarm]) -> Alarm | None:
    """The alarm with the strongest action, if any does more than warn; hacking, which ends the run, comes first."""
    acting = [alarm for alarm in alarms if alarm.action != "warn"]
    return max(acting, key=lambda alarm: (alarm.name == "hacking", ACTIONS.index(alarm.action)), default=None)


def roll_back_to(
    checkpoint: checkpoints.Checkpoint,
    policy: Policy,
    learner: Learner,
    watch: Watchdog,
    left: int | None,
    critic: Critic | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Restores weights, optimizer, critic and watchdog of a checkpoint; the learning-rate schedule continues.

    left: the iteration whose weights are lost. ranks: all call it.
    """
    saved = checkpoints.load(checkpoint, like=sharded_as(policy, learner, critic, ranks))
    resuming.fill_parameters(adapters.trainable_by_name(policy.modules), saved["parameters"], checkpoint)
    learner.load_state_dict(saved["learner"] | {"steps": learner.steps, "factor": learner.factor})
    if critic is not None:
        restore_critic(critic, saved, checkpoint)
    watch.roll_back(saved["mark"]["watch"], left)


def rollback_message(iteration: int, watch: Watchdog) -> str:
    """The message of a run that hacking has ended, about the weights of the iteration that it ends with."""
    why = "the witness was best there" if watch.has_witnesses else "no better reward was below the hack limit"
    return (
        f"rolled back to iteration {iteration}: {why}, and the run ends with these weights; to continue from them, "
        "change the recipe (for example watch.on_hack=warn) and use --resume"
    )
