"""The keys of what a run computes in and of where it is shown."""

from typing import Any, Literal

from pydantic import create_model

from flowrl.recipe.base import Strict, key
from flowrl.untyped import JSON

Precision = Literal["float32", "bfloat16", "float16"]


class Dtype(Strict):
    """model: frozen weights and activations; with float16 the loss is scaled, so that its gradients do not vanish, and
    weights that learn are moved in float32. trajectory: stored latents. logp: log-probs, ratios and losses. adapters:
    what they are multiplied in, while their weights are float32; model is dtype.model, auto that on a GPU in bfloat16,
    else float32. tf32: float32 products on a GPU round what they multiply to 10 bits, those of rewards included."""

    model: Precision = key("float32", "float32, bfloat16 or float16")
    trajectory: Precision = key("float32", "float32, bfloat16 or float16")
    logp: Literal["float32", "float64"] = key("float32", "float32 or float64")
    adapters: Literal["auto", "float32", "model"] = key("auto", "auto, float32 or model")
    tf32: bool = key(False, "true or false")


# `with` is a word of Python's: a class body cannot name a field so.
_WITH: dict[str, Any] = {"with": (list[str], key([], "a list of trackers"))}
_With: Any = create_model("_With", __base__=Strict, **_WITH)


class Track(_With):
    """Where a run is shown beside its own TensorBoard files. None by default: then nothing leaves the machine.

    with: wandb, swanlab, mlflow, trackio, comet_ml, clearml, dvclive, aim, or dotted paths to subclasses (project,
    **args) of accelerate's GeneralTracker. name null: that of the run's folder. args: trackers mapped to arguments of
    their own, such as {wandb: {mode: offline}}.
    """

    project: str = key("flowrl", "a name", min_length=1)
    name: str | None = key(None, "a name or null", min_length=1)
    args: dict[str, dict[str, JSON]] = key({}, "trackers mapped to {argument: value}")

    @property
    def wanted(self) -> list[str]:
        """The value of `with`."""
        return getattr(self, "with")
