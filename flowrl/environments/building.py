"""The environment that a recipe names, its tools imported and made."""

import builtins
import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flowrl import names
from flowrl.contracts import Environment, Unavailable
from flowrl.environments.classes import Methods
from flowrl.environments.functions import Functions
from flowrl.environments.schemas import Tool, tool_of
from flowrl.names import UserError
from flowrl.recipe.keys.environment import EnvironmentKeys
from flowrl.untyped import JSON


class MissingError(UserError):
    """Something that a tool or an environment needs is not there: a package, a program, a server, a file."""


def build_environment(given: EnvironmentKeys) -> Environment:
    """Raises UserError for one that cannot be made, MissingError for one that lacks what it needs, in one line."""
    faults = tuple(getattr(builtins, name) for name in given.faults)
    options: dict[str, Any] = {"most": given.calls, "faults": faults}
    if given.use is None:
        tools = [_tool(f"environment.tools.{i}", spec.use, spec.args) for i, spec in enumerate(given.tools)]
        return Functions(tools, **options)
    thing = names.load(given.use, names.shipped("environment"), "environment")
    if hasattr(thing, "start"):
        return _made("environment.use", given.use, thing, given.args)
    return _made("environment.use", given.use, partial(Methods, partial(thing, **given.args), **options), {})


def build_agent(given: EnvironmentKeys) -> Callable[[str, Any], Any]:
    """The agent that a recipe names, to be called with (base_url, prompt); raises as `build_environment` does."""
    assert given.agent is not None
    thing = names.load(given.agent, names.shipped("agent"), "agent")
    if not isinstance(thing, type):
        return partial(thing, **given.args)
    made: Callable[[str, Any], Any] = _made("environment.agent", given.agent, thing, given.args)
    return made


def _tool(place: str, use: str, args: Mapping[str, JSON]) -> Tool:
    thing, entry = names.load(use, names.shipped("tool"), "tool"), names.find(use, names.shipped("tool"), "tool")
    own = _made(place, use, thing, args) if isinstance(thing, type) else thing
    return tool_of(own, str(getattr(own, "name", entry.attribute)))


def _made(place: str, use: str, thing: Callable[..., Any], args: Mapping[str, JSON]) -> Any:
    """The object of a class. Raises UserError where it cannot be made."""
    try:
        return thing(**copy.deepcopy(dict(args)))
    except Unavailable as error:
        raise MissingError(f"{place}: {use!r} cannot be used: {error}") from error
    except UserError as error:
        raise UserError(f"{place}: {use!r} cannot be used: {error}") from error
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"{place}: {use!r} cannot be set up: {reason}; correct it or its args") from error
