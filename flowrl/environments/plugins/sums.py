"""A calculator in the middle of what a model writes: no call, but an equals sign."""

import re
from collections.abc import Mapping
from typing import Any

from flowrl.contracts import ModelsFault, Prompt, Said, Shown
from flowrl.environments.tools.calculator import calculator

EXPRESSION = re.compile(r"[\d.+*/() -]+$")


class worked_sums:  # noqa: N801 - recipes name it
    """Evaluates the sum before a = at the end of a turn; the model continues after the result.

    It needs turns that end there and results that stand there alone: generation.stop=["="] and
    environment.frame="{text}". A turn that ends otherwise is final.
    """

    def tools(self) -> list[Any]:
        """None: the model writes sums as it always does."""
        return []

    def start(self, prompt: Prompt, seed: int) -> "Sums":
        """A conversation without any state."""
        return Sums()


class Sums:
    """An episode of `worked_sums`."""

    def step(self, said: Said) -> Shown | None:
        """The value of the expression; what has none is answered by a question mark."""
        if not said.text.endswith("="):
            return None
        found = EXPRESSION.search(said.text[:-1])
        try:
            return Shown(calculator(found.group() if found else ""), name="calculator")
        except ModelsFault as fault:
            return Shown("?", name="calculator", error=str(fault))

    def outcome(self) -> Mapping[str, float]:
        """Nothing."""
        return {}
