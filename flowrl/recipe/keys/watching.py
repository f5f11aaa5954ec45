"""The keys of alarms during training."""

from typing import ClassVar, Literal

from flowrl.recipe.base import Strict, key
from flowrl.recipe.sections import Own, only_own


class OwnRuleKeys(Own):
    """A rule of the user's own: what is wrong with an iteration's metrics, in words, or None."""

    part: ClassVar[str] = "rule"

    @property
    def alarm(self) -> str:
        """The name of its alarm: the last part of its path."""
        return self.kind.replace(":", ".").rpartition(".")[2]


class Watch(Strict):
    """Alarms during training (flowrl/watch/watchdog.py lists them). on_alarm: warn goes on, stop ends the run, rollback
    returns to the best checkpoint, multiplies the learning rate by `lower`, and stops after `rollbacks` of them.

    patience: iterations that a condition has to last. ignore: alarms that never ring. kl: how many times its running
    median a divergence may reach. collapse: share of its best by which the held-out reward may fall. drift: factor by
    which saturation, brightness, contrast or sharpness may change while the reward rises (the length of texts: by its
    square). diversity: share of the first distance within groups that has to remain. rules: the user's own, beside
    those that ship: functions of an iteration's metrics whose alarms are named like them (docs/extending.md).

    on_hack: the answer to the alarm `hacking` (null: on_alarm's); its rollback returns to the checkpoint with the best
    witness and ends the run with these weights. kl_to_base: the divergence from the model without its adapters, a
    decision, that makes other signs of hacking weigh fully; it is then measured at evaluations (null: it is not).
    """

    on_alarm: Literal["warn", "stop", "rollback"] = key("warn", "warn, stop or rollback")
    patience: int = key(5, "a whole number >= 1", ge=1)
    ignore: list[str] = key([], "a list of alarms")
    rules: list[only_own(OwnRuleKeys)] = key([], "a list of dotted paths to rules")  # pyright: ignore
    kl: float = key(10.0, "a number > 1", gt=1)
    collapse: float = key(0.1, "a number >= 0", ge=0)
    drift: float = key(1.5, "a number > 1", gt=1)
    diversity: float = key(0.5, "a number in [0, 1)", ge=0, lt=1)
    lower: float = key(0.5, "a number in (0, 1]", gt=0, le=1)
    rollbacks: int = key(2, "a whole number >= 0", ge=0)
    on_hack: Literal["warn", "stop", "rollback"] | None = key(None, "warn, stop, rollback or null")
    kl_to_base: float | None = key(None, "a number > 0 or null", gt=0)
