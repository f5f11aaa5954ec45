"""The keys of a reference: what the divergence of an objective is measured from."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import SerializeAsAny, WrapValidator

from flowrl.recipe.base import Strict, key
from flowrl.untyped import JSON


class ReferenceKeys(Strict):
    """What the divergence of objective.kl is measured from, frozen.

    use: base, the model as the run finds it; average, the run's own averaged weights (train.ema); lora, other adapters
    on the same model, a folder that a run wrote or one in diffusers' or peft's layout; model, another pipeline or
    language model, by an embedded name, a hub id or a folder.

    path: of the adapters or the model. pipeline: arguments of the reference's own call, in place of `pipeline`, such as
    a guidance that the samples are drawn without (null: those of `pipeline`). steps: how many steps of its ODE the
    reference takes to one of the samples'. when: of several references, given as a list, keys of the prompts' meta and
    the value, or list of values, of those that this one looks at (null: at all that none before it does).

    Where every reward is a witness (weight 0), the divergence alone trains: on-policy distillation from the reference.
    """

    use: Literal["base", "average", "lora", "model"] = key("base", "base, average, lora or model")
    path: str | None = key(None, "a folder, of a model also its name or hub id, or null", min_length=1)
    pipeline: dict[str, JSON] | None = key(None, "a mapping of the call's arguments, or null")
    steps: int = key(1, "a whole number from 1 to 100", ge=1, le=100)
    when: dict[str, JSON] | None = key(None, "keys of the prompts' meta mapped to a value or a list of values, or null")

    @property
    def is_own_policy(self) -> bool:
        """Whether the reference is called as a pipeline of its own: another model, or the same one called otherwise."""
        return self.use == "model" or self.pipeline is not None or self.steps > 1

    def __str__(self) -> str:
        what = {"base": "the model as the run finds it", "average": "the averaged weights"}
        named = {"lora": f"the LoRA in {self.path}", "model": str(self.path)}
        call = ", ".join(f"{name}={value}" for name, value in (self.pipeline or {}).items())
        whose = ", ".join(f"{name}={value}" for name, value in (self.when or {}).items())
        text = (what | named)[self.use] + (f", called with {call}" if call else "")
        text += f", {self.steps} steps to one" if self.steps > 1 else ""
        return text + (f", for prompts with {whose}" if whose else "")


def _either(value: Any, handler: Callable[[Any], ReferenceKeys]) -> Any:
    if not isinstance(value, list):
        return handler(value)
    if not value:
        raise ValueError("a list has at least one")
    return [handler(inner) for inner in value]


OneOrSeveral = SerializeAsAny[Annotated[ReferenceKeys, WrapValidator(_either)]]  # a list is one of them for each prompt


def place_of(reference: ReferenceKeys | list[ReferenceKeys], number: int, name: str) -> str:
    """The dotted key of a key of reference `number`."""
    return f"reference.{number}.{name}" if isinstance(reference, list) else f"reference.{name}"
