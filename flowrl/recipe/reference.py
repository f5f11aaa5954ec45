"""The keys of a reference: what the divergence of an objective is measured from."""

from typing import Literal

from flowrl.recipe.base import Strict, key
from flowrl.untyped import JSON


class ReferenceKeys(Strict):
    """What the divergence of objective.kl is measured from, frozen.

    use: base, the model as the run finds it; average, the run's own averaged weights (train.ema); lora, other adapters
    on the same model, a folder that a run wrote or one in diffusers' or peft's layout; model, another pipeline or
    language model, by an embedded name, a hub id or a folder.

    path: of the adapters or the model. pipeline: arguments of the reference's own call, in place of `pipeline`, such as
    a guidance that the samples are drawn without (null: those of `pipeline`).

    Where every reward is a witness (weight 0), the divergence alone trains: on-policy distillation from the reference.
    """

    use: Literal["base", "average", "lora", "model"] = key("base", "base, average, lora or model")
    path: str | None = key(None, "a folder, of a model also its name or hub id, or null", min_length=1)
    pipeline: dict[str, JSON] | None = key(None, "a mapping of the call's arguments, or null")

    @property
    def is_own_policy(self) -> bool:
        """Whether the reference is called as a pipeline of its own: another model, or the same one called otherwise."""
        return self.use == "model" or self.pipeline is not None

    def __str__(self) -> str:
        what = {"base": "the model as the run finds it", "average": "the averaged weights"}
        named = {"lora": f"the LoRA in {self.path}", "model": str(self.path)}
        call = ", ".join(f"{name}={value}" for name, value in (self.pipeline or {}).items())
        return (what | named)[self.use] + (f", called with {call}" if call else "")
