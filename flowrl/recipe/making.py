"""The parts that a recipe names, with the arguments that it gives them. Their modules are imported here."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flowrl import names
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import Own, given
from flowrl.signatures import facts_of
from flowrl.untyped import JSON


@dataclass(frozen=True)
class Bound:
    """A function with arguments of its own; equal to another of the same function and arguments, as plans have to be.

    key: the arguments as text.
    """

    function: Callable[..., Any]
    key: str
    arguments: Mapping[str, JSON] = field(compare=False)

    def __call__(self, *args: Any) -> Any:
        """What the function gives for these leading arguments."""
        return self.function(*args, **self.arguments)


_INSTANCES: dict[tuple[str, str], Any] = {}  # of the user's own classes, made once: plans are compared


def build_part(kind: str, section: Any, run: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """The part that a section of a recipe names, with its arguments, and those of the run's that it takes."""
    entry = names.find(section.kind, names.shipped(kind), kind)
    thing = names.load(section.kind, names.shipped(kind), kind)
    taken = {p.name for p in entry.signature.parameters}
    filled = {name: value for name, value in (run or {}).items() if name in taken or entry.signature.any}
    arguments = given(section) | filled
    if inspect.isclass(thing) and isinstance(section, Own):
        key = (section.kind, repr(arguments))
        if key not in _INSTANCES:
            _INSTANCES[key] = thing(**arguments)
        return _INSTANCES[key]
    return Bound(thing, repr(arguments), arguments)


def solver_of(named: Any) -> Any:
    """The solver that a key of a recipe names: the name of one that ships, or the user's own function."""
    return build_part("solver", named) if isinstance(named, Own) else named


def step_of(recipe: Recipe) -> Callable[..., Any]:
    """The denoising step of a recipe, with its own arguments; what is said beside it is said of this too."""
    step, arguments = names.load(recipe.sampler.step, names.steps(), "step"), recipe.sampler.step_args
    if not arguments:
        return step
    made: Any = functools.partial(step(**arguments)) if isinstance(step, type) else functools.partial(step, **arguments)
    vars(made).update(facts_of(step))
    return made
