"""What an alarm makes a run do: stop, or go back to an earlier checkpoint."""

from collections.abc import Sequence

from flowrl.contracts import Policy
from flowrl.core.learner import Learner
from flowrl.policies import adapters
from flowrl.runs import checkpoints
from flowrl.runs import resume as resuming
from flowrl.watch.alarms import ACTIONS, Alarm
from flowrl.watch.watchdog import Watchdog


class Alarmed(RuntimeError):
    """A run that an alarm has ended; everything is saved."""

    @staticmethod
    def by(alarm: Alarm) -> "Alarmed":
        """The error that names the alarm and what to try."""
        lost = "" if alarm.to is None else f" (no checkpoint of iteration {alarm.to} was kept to return to)"
        return Alarmed(f"stopped by the alarm {alarm.name}{lost}: {alarm.what}; what to try: {alarm.remedy}")


def most_severe(alarms: Sequence[Alarm]) -> Alarm | None:
    """The alarm that asks for most, if any asks for more than to be heard; hacking, which ends the run, before all."""
    asking = [alarm for alarm in alarms if alarm.action != "warn"]
    return max(asking, key=lambda alarm: (alarm.name == "hacking", ACTIONS.index(alarm.action)), default=None)


def go_back(
    checkpoint: checkpoints.Checkpoint, policy: Policy, learner: Learner, watch: Watchdog, left: int | None
) -> None:
    """Takes up weights, optimizer and watchdog of a checkpoint; the schedule of the learning rate goes on.

    left: the iteration whose weights are lost by it.
    """
    saved = checkpoints.load(checkpoint)
    resuming.fill(adapters.trainable_by_name(policy.modules), saved["parameters"], checkpoint)
    learner.load_state_dict(saved["learner"] | {"steps": learner.steps, "factor": learner.factor})
    watch.roll_back(saved["mark"]["watch"], left)


def rollback_message(iteration: int, watch: Watchdog) -> str:
    """What a run that hacking has ended says of the weights of this iteration, which it ends with."""
    why = "the witness was best there" if watch.has_witnesses else "no better reward was free of suspicion"
    return (
        f"rolled back to iteration {iteration}: {why}, and the run ends with these weights; to go on from them, change "
        "the recipe (such as watch.on_hack=warn) and take --resume"
    )
