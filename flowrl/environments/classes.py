"""A class as an environment: its public methods are the tools, and it keeps its own score.

The form is that of TRL's environments (its documentation, "environment_factory"): `reset(**row)` gets the columns of
the prompt and may return a text that the prompt is to end with; the score at the end is what `get_reward()` gives, or
what stands in attributes, such as `reward`.
"""

import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from flowrl.contracts import Context, Prompt, Schema
from flowrl.environments.functions import Functions, Talk, as_text
from flowrl.environments.schemas import tool_of
from flowrl.names import UserError

OWN = ("reset", "get_reward")  # methods that are no tools


class Methods:
    """An environment of objects of a class, one for each row. make: gives a new object; most, faults: see `Functions`.

    Raises UserError where the class has no method that could be a tool.
    """

    def __init__(self, make: Callable[[], Any], *, most: int | None = None, faults: tuple[type[Exception], ...] = ()):
        self.make, self.most, self.faults = make, most, faults
        self._schemas = self._functions(make()).tools()
        if not self._schemas:
            raise UserError(f"environment: {_name(make)} has no public method beside {' and '.join(OWN)}; add a tool")

    def tools(self) -> list[Schema]:
        """What the model is told of each public method."""
        return self._schemas

    def start(self, prompt: Prompt, seed: int) -> "MethodsTalk":
        """A new object, which is reset with what its method takes of the prompt's columns and the prompt itself."""
        thing = self.make()
        row = {"seed": seed, **prompt.meta, "prompt": list(prompt.messages) or prompt.text}
        signature = inspect.signature(thing.reset).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in signature.values()):
            row = {name: value for name, value in row.items() if name in signature}
        opening = thing.reset(**row)
        context = Context(prompt, seed, list(prompt.media))
        return MethodsTalk(self._functions(thing), context, thing, as_text(opening))

    def _functions(self, thing: Any) -> Functions:
        names = [name for name, _ in inspect.getmembers(type(thing), inspect.isroutine)]
        own = [name for name in names if not name.startswith("_") and name not in OWN]
        return Functions([tool_of(getattr(thing, name)) for name in own], most=self.most, faults=self.faults)


class MethodsTalk(Talk):
    """An episode of `Methods`. opening: what `reset` gave, which the prompt ends with."""

    def __init__(self, of: Functions, context: Context, thing: Any, opening: str):
        super().__init__(of, context)
        self.thing, self.opening = thing, opening

    def outcome(self) -> Mapping[str, float]:
        """Its public attributes that are numbers, what its methods noted in the context, and as `reward` what
        `get_reward` gives, where the class has it."""
        held = getattr(self.thing, "__dict__", {}).items()
        own = {k: float(v) for k, v in held if not k.startswith("_") and isinstance(v, numbers.Real)}
        score = getattr(self.thing, "get_reward", None)
        return {**own, **super().outcome(), **({} if score is None else {"reward": float(score())})}


def _name(make: Callable[[], Any]) -> str:
    return getattr(getattr(make, "func", make), "__name__", "the class")
