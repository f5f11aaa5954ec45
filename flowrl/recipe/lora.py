"""The keys of low-rank adapters."""

from typing import Literal

from flowrl.recipe.base import Strict, key


class Lora(Strict):
    """Low-rank adapters. targets: `attention` (q, k, v, out projections), `all` linear layers, or ends of module names.

    modules: which denoisers of the pipeline carry adapters (null: all that it calls). init: `default` is peft's,
    `gaussian` the one of Flow-GRPO; both begin as the unchanged model.
    """

    rank: int = key(32, "a whole number from 1 to 16384", ge=1, le=2**14)
    alpha: float = key(64.0, "a number > 0", gt=0)
    targets: Literal["attention", "all"] | list[str] = key("attention", "attention, all, or a list of module names")
    modules: list[str] | None = key(None, "a list of denoiser names or null")
    init: Literal["default", "gaussian"] = key("default", "default or gaussian")
