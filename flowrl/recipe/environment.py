"""The keys of `environment`: what answers a language model between its turns, and whether the recipe fits it."""

import builtins
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator

from flowrl import names
from flowrl.recipe.base import Strict, key
from flowrl.recipe.errors import RecipeError, show, wrong_value
from flowrl.recipe.sections import check_arguments, keys
from flowrl.untyped import JSON

if TYPE_CHECKING:
    from flowrl.recipe.generation import GenerationKeys
    from flowrl.recipe.schema import Recipe


class ToolSpec(Strict):
    """A tool: its short name (`flowrl list tools`) or a dotted path. args: of a class, given when it is made."""

    use: str = key(..., "the name of a tool or a dotted path", min_length=1)
    args: dict[str, JSON] = key({}, "a mapping of argument names to values")


Named = Annotated[ToolSpec, BeforeValidator(lambda value: {"use": value} if isinstance(value, str) else value)]


class EnvironmentKeys(Strict):
    """What a language model talks to: `tools`, or an environment of the user's own, `use`, with its `args`.

    turns: the most of the model in a conversation; generation.max_new_tokens limits what it draws and is shown in all
    of them together, turn_tokens what it draws in one (null: what is left). calls: of one turn, the most that are run
    (null: all). deadline: seconds that a call may take (null: any time); workers: conversations that are answered at
    once. faults: built-in exceptions, such as ValueError, of tools whose text is shown to the model; all others, but
    ModelsFault, leave the sample without a score.

    role: of messages that answer, where the chat template has both (null: tool where it is exact, else user). frame: a
    text with {text} in it that takes the place of the template. tell: how the model learns of its tools: by its chat
    template, or not at all (none), where it was trained on them or the prompts say it.
    """

    tools: list[Named] = key([], "a list of tools: names, dotted paths, or mappings with use and args")
    use: str | None = key(None, "a dotted path to an environment, or null", min_length=1)
    args: dict[str, JSON] = key({}, "a mapping of argument names to values")
    turns: int = key(8, "a whole number >= 1", ge=1)
    turn_tokens: int | None = key(None, "a whole number >= 1 or null", ge=1)
    calls: int | None = key(None, "a whole number >= 1 or null", ge=1)
    deadline: float | None = key(60.0, "seconds > 0 or null", gt=0)
    workers: int = key(16, "a whole number >= 1", ge=1)
    faults: list[str] = key([], "a list of names of built-in exceptions")
    role: Literal["tool", "user"] | None = key(None, "tool, user or null")
    frame: str | None = key(None, "a text with {text} in it, or null", min_length=1)
    tell: Literal["template", "none"] = key("template", "template or none")


def check_environment(recipe: "Recipe", generation: "GenerationKeys") -> Iterator[RecipeError]:
    """Everything about `environment` that cannot work with a language model. A user's own modules are imported."""
    given = recipe.environment
    if given is None:
        return
    if bool(given.tools) == (given.use is not None):
        problem = f"{'both' if given.tools else 'neither'} of tools and use given, accepted: exactly one"
        yield RecipeError("environment.tools", problem, "name tools, or set environment.use to an environment")
    if given.frame is not None and given.frame.count("{text}") != 1:
        yield wrong_value("environment.frame", given.frame, "a text with {text} in it, once")
    for name in given.faults:
        found = getattr(builtins, name, None)
        if not (isinstance(found, type) and issubclass(found, Exception)):
            yield wrong_value("environment.faults", name, "names of built-in exceptions, such as ValueError")
    yield from _beside(recipe, generation)
    for number, spec in enumerate(given.tools):
        yield from _named(f"environment.tools.{number}", "tool", spec.use, spec.args)
    if given.use is not None:
        yield from _named("environment", "environment", given.use, given.args)


def _named(place: str, kind: str, use: str, args: dict[str, JSON]) -> Iterator[RecipeError]:
    try:
        entry = names.find(use, names.shipped(kind), kind)
    except names.UserError as error:
        yield RecipeError(f"{place}.use", str(error), f"name another {kind}")
        return
    yield from check_arguments(f"{place}.args", args, entry, tuple(p.name for p in keys(kind, entry)))


def _beside(recipe: "Recipe", generation: "GenerationKeys") -> Iterator[RecipeError]:
    """Keys that draw completions in another way, or read what conversations do not have."""
    for name in ("tree", "again", "force", "partial"):
        if getattr(generation, name, None) is not None:
            problem = "given beside environment, which draws completions turn by turn"
            yield RecipeError(f"generation.{name}", problem, f"set generation.{name}=null")
    for name, off in (("dtype", None), ("batch_invariant", False)):
        if (value := getattr(recipe.rollout, name)) != off:
            problem = f"got {show(value)}, but turns go on in batches of the model's own"
            yield RecipeError(f"rollout.{name}", problem, f"set rollout.{name}={'null' if off is None else 'false'}")
    if recipe.advantage.credit.kind == "optimal_token":
        problem = "got 'optimal_token', whose statistics are not kept of conversations"
        yield RecipeError("advantage.credit", problem, "set advantage.credit=reward_to_go")
