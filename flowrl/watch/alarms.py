"""The closed list of alarms: the likely cause of each, what to try, and the strongest action a run may take."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

ACTIONS = ("warn", "stop", "rollback")  # from mild to strong


class AlarmKind(NamedTuple):
    """What is known of an alarm before it is raised. strongest: the strongest action that a recipe may choose."""

    strongest: str
    cause: str
    remedy: str


ALARMS: dict[str, AlarmKind] = {
    "nonfinite": AlarmKind(
        "rollback",
        "an overflow in half precision, too large an optimizer step, or a reward that divides by zero",
        "lower train.lr, set dtype.model to bfloat16 or float32, and check the named metric",
    ),
    "replay": AlarmKind(
        "stop",
        "the replayed forward pass differs from the one that sampled: dropout, different batch shapes in half "
        "precision, or a model that was changed in between",
        "set dtype.logp=float64 or dtype.model=float32, make train.micro_batch and train.rollout_batch equal, "
        "or widen objective.clip",
    ),
    "mismatch": AlarmKind(
        "stop",
        "the samples come from another policy than the one that is trained: a lower precision, an engine that computes "
        "differently, or older weights",
        "correct for it (objective.correction, such as {kind: tis}), sample in a higher precision "
        "(rollout.dtype=float16 or null), or lower train.lr",
    ),
    "no_gradient": AlarmKind(
        "stop",
        "the gradient is cut before the trained weights, or every decision is clipped",
        "check lora.targets and lora.modules, set train.gradient_checkpointing=false, and see whether the alarm "
        "clip_all is raised too",
    ),
    "silent": AlarmKind(
        "warn",
        "all samples of a group score the same: the reward is constant, saturated or too coarse, or the task is solved",
        "look at the samples, use a finer reward or harder prompts, or get more varied samples: raise "
        "train.group or sampler.noise",
    ),
    "clip_all": AlarmKind(
        "rollback",
        "the policy moves further within a rollout than the clip allows: train.lr is high for this objective.clip",
        "lower train.lr, widen objective.clip, or make fewer optimizer steps per rollout (train.updates, train.epochs)",
    ),
    "clip_none": AlarmKind(
        "warn",
        "the policy hardly moves within a rollout, so the clip never acts",
        "nothing needs to be done; you may raise train.lr or narrow objective.clip",
    ),
    "kl": AlarmKind(
        "rollback",
        "the policy diverges: train.lr is too high, or a few very large advantages dominate the update",
        "lower train.lr, raise objective.kl, or lower advantage.clip",
    ),
    "old_distance": AlarmKind(
        "rollback",
        "the policy moves away from the older weights ever faster: train.lr is too high, or no term keeps it near them",
        "lower train.lr, raise objective.kl or the loss's penalty or clip towards older weights, or make fewer "
        "optimizer "
        "steps per rollout (train.updates, train.epochs)",
    ),
    "gradient": AlarmKind(
        "rollback",
        "training becomes unstable: the loss has no lower bound along some direction, or train.lr is too high",
        "use the best checkpoint, lower train.lr or train.max_grad_norm, or keep the policy near its start: raise "
        "objective.kl, or give a loss on noised samples a penalty or a clip",
    ),
    "chance": AlarmKind(
        "stop",
        "the policy does not learn to prefer the better sample: pairs that differ by chance, a train.lr that is too "
        "low, or a beta that keeps it at the reference",
        "look at the pairs, require a larger difference of their rewards, raise train.lr or lower the loss's beta",
    ),
    "displacement": AlarmKind(
        "rollback",
        "likelihood displacement: the margin grows because the worse sample's error rises, and the better one's rises "
        "with it",
        "lower train.lr, raise the loss's beta or objective.kl, or stop earlier and use the best checkpoint",
    ),
    "calls": AlarmKind(
        "rollback",
        "calling tools does not pay off: calls or length have a cost, or calls rarely help so far",
        "remove the cost until tools help, give a bonus for a right answer with a call (used_tool with a gate), "
        "start from a model that calls better, or set watch.ignore=[calls] if fewer calls are the aim",
    ),
    "collapse": AlarmKind(
        "rollback",
        "the policy left the region where its samples are good: train.lr too high for too long, or overfitting",
        "use the best checkpoint, lower train.lr, raise objective.kl, or train on more prompts",
    ),
    "hacking": AlarmKind(
        "rollback",
        "reward hacking: the reward rises through changes that were not intended",
        "look at the samples; raise objective.kl, train on a second reward as well, or stop earlier; set "
        "watch.ignore=[hacking] if the change is intended",
    ),
    "diversity": AlarmKind(
        "rollback",
        "the policy collapses to a few samples per prompt, which also leaves less to learn from",
        "raise objective.kl or sampler.noise, lower train.lr, or add a reward for diversity",
    ),
}


@dataclass(frozen=True)
class Alarm:
    """An alarm raised at `iteration` about a condition that began at `since`; action: what the run does about it.

    to: the iteration whose weights the run ends with after a rollback; None if the run continues.
    """

    name: str
    iteration: int
    since: int
    what: str
    cause: str
    remedy: str
    action: str = "warn"
    to: int | None = None

    def describe(self) -> str:
        """The alarm, its likely cause, remedy and action, in one line."""
        begun = f", since {self.since}" if self.since != self.iteration else ""
        what = f"{self.name} (iteration {self.iteration}{begun}): {self.what}"
        action = self.action if self.to is None else f"{self.action} to iteration {self.to}, where the run ends"
        return f"{what}. Likely cause: {self.cause}. What to try: {self.remedy}. Action: {action}"

    def record(self) -> dict[str, Any]:
        """A line of alarms.jsonl."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def milder(first: str, second: str) -> str:
    """The milder of two actions."""
    return min(first, second, key=ACTIONS.index)
