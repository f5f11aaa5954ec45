"""The keys of low-rank adapters."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from flowrl import names
from flowrl.recipe.base import Strict, key
from flowrl.recipe.errors import RecipeError, show

DRAWN = ("default", "gaussian")  # how adapters begin that no folder holds
MATCH = "match:"


def check_pattern(place: str, text: str, choices: Sequence[str], accepted: str) -> Iterator[RecipeError]:
    """A text that is neither one of the choices nor a regular expression behind `match:`."""
    pattern = text.removeprefix(MATCH)
    if pattern == text and text not in choices:
        yield RecipeError(place, f"got {show(text)}, accepted: {accepted}", f"choose one{names.hint(text, choices)}")
    try:
        re.compile(pattern)
    except re.error as error:
        yield RecipeError(place, f"{show(pattern)} is no regular expression ({error})", "correct it")


class Lora(Strict):
    """Low-rank adapters. targets: `attention` (q, k, v, out projections), `all` linear layers, `match:` and a regular
    expression for their whole names, or a list of ends of module names.

    modules: which denoisers of the pipeline carry adapters (null: all that it calls). init: `default` is peft's,
    `gaussian` the one of Flow-GRPO; both begin as the unchanged model. A folder, of an earlier run or of adapters in
    diffusers' or peft's layout, is what they go on from; a divergence from the base is still measured without any
    (reference: {use: lora, path: FOLDER} measures it from where they began). rslora: they are scaled by alpha /
    sqrt(rank) in place of alpha / rank (arXiv:2312.03732). dora: weights are split into length and direction
    (arXiv:2402.09353). There is no dropout: a replay with another mask would be another policy than the one that drew.
    """

    rank: int = key(32, "a whole number from 1 to 16384", ge=1, le=2**14)
    alpha: float = key(64.0, "a number > 0", gt=0)
    targets: Literal["attention", "all"] | str | list[str] = key(
        "attention", "attention, all, match:REGEX, or a list of module names"
    )
    modules: list[str] | None = key(None, "a list of denoiser names or null")
    init: Literal["default", "gaussian"] | str = key("default", "default, gaussian or a folder", min_length=1)
    rslora: bool = key(False, "true or false")
    dora: bool = key(False, "true or false")

    @property
    def begun(self) -> str | None:
        """The folder that the adapters go on from, if any."""
        return None if self.init in DRAWN else self.init

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of policies.adapters.add_lora; of adapters from a folder, before they are read."""
        made = self.model_dump(exclude={"modules", "init"})
        return made | {"init": "default" if self.begun else self.init}
