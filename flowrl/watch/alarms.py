"""The closed list of alarms: what each probably means, what to try, and the most that a run may do about it."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

ACTIONS = ("warn", "stop", "rollback")  # from the mildest on


class Kind(NamedTuple):
    """What is known of an alarm before it rings. strongest: the most that a recipe may make a run do about it."""

    strongest: str
    cause: str
    remedy: str


ALARMS: dict[str, Kind] = {
    "nonfinite": Kind(
        "rollback",
        "an overflow in half precision, a step that was too long, or a reward that divides by zero",
        "lower train.lr, set dtype.model to bfloat16 or float32, and check the metric that is named",
    ),
    "replay": Kind(
        "stop",
        "the replayed forward is not the one that sampled: dropout, other batch shapes in half precision, or a model "
        "that was changed in between",
        "set dtype.logp=float64 or dtype.model=float32, make train.micro_batch and train.rollout_batch equal, "
        "or widen objective.clip",
    ),
    "no_gradient": Kind(
        "stop",
        "the gradient is cut before the trained weights, or every decision is clipped",
        "check lora.targets and lora.modules, set train.gradient_checkpointing=false, and see whether clip_all rings",
    ),
    "silent": Kind(
        "warn",
        "all samples of a group score the same: the reward is constant, saturated or too coarse, or the task is solved",
        "look at the samples, use a finer reward or harder prompts, or draw more: raise train.group or sampler.noise",
    ),
    "clip_all": Kind(
        "rollback",
        "the policy moves further in one rollout than the clip allows: train.lr is high for this objective.clip",
        "lower train.lr, widen objective.clip, or make fewer optimizer steps a rollout (train.updates, train.epochs)",
    ),
    "clip_none": Kind(
        "warn",
        "the policy hardly moves within a rollout, so that the clip never acts",
        "nothing has to be done; train.lr may be raised, or objective.clip narrowed",
    ),
    "kl": Kind(
        "rollback",
        "the policy runs away: train.lr is too high, or a few huge advantages rule the update",
        "lower train.lr, raise objective.kl, or lower advantage.clip",
    ),
    "collapse": Kind(
        "rollback",
        "the policy left the region where its samples are good: too high a train.lr for too long, or overfitting",
        "take the best checkpoint, lower train.lr, raise objective.kl, or train on more prompts",
    ),
    "hacking": Kind(
        "rollback",
        "the reward is being gamed: it rises by something that nobody asked for",
        "look at the samples; raise objective.kl, train a second reward beside it, or stop earlier; set "
        "watch.ignore=[hacking] where this is what you ask for",
    ),
    "diversity": Kind(
        "rollback",
        "the policy collapses to few samples a prompt, which also leaves less to learn from",
        "raise objective.kl or sampler.noise, lower train.lr, or reward diversity",
    ),
}


@dataclass(frozen=True)
class Alarm:
    """An alarm that rings at `iteration` for what has held since `since`; action: what the run is to do about it.

    to: the iteration whose weights a rollback ends the run with; None for one that goes on.
    """

    name: str
    iteration: int
    since: int
    what: str
    cause: str
    remedy: str
    action: str = "warn"
    to: int | None = None

    def line(self) -> str:
        """All of it in one line."""
        begun = f", since {self.since}" if self.since != self.iteration else ""
        told = f"{self.name} (iteration {self.iteration}{begun}): {self.what}"
        action = self.action if self.to is None else f"{self.action} to iteration {self.to}, where the run ends"
        return f"{told}. Likely cause: {self.cause}. What to try: {self.remedy}. Action: {action}"

    def record(self) -> dict[str, Any]:
        """A line of alarms.jsonl."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def milder(first: str, second: str) -> str:
    """The milder of two actions."""
    return min(first, second, key=ACTIONS.index)
