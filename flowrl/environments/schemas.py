"""What a model is told of a tool, read off its function; and whether the arguments of a call fit it."""

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from transformers.utils import get_json_schema

from flowrl.contracts import Context, Schema
from flowrl.names import UserError

TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


@dataclass(frozen=True)
class Tool:
    """A function that a model may call. context: the name of the parameter that the run fills in, if it has one."""

    name: str
    function: Callable[..., Any]
    schema: Schema
    context: str | None = None

    def misfit(self, arguments: Mapping[str, Any]) -> str | None:
        """Why the function cannot take these arguments, in words for the model; None where it can."""
        return misfit(arguments, self.schema["function"]["parameters"], "arguments")

    def __call__(self, arguments: Mapping[str, Any], context: Context) -> Any:
        """What the function gives."""
        own = {} if self.context is None else {self.context: context}
        return self.function(**own, **arguments)


def tool_of(thing: Callable[..., Any], name: str | None = None) -> Tool:
    """A function, a method, or an object that is called, as a tool.

    Its docstring says what it does and, under `Args:`, what each argument is; an object's is that of its __call__.
    Raises UserError where that is missing, or an argument has no type.
    """
    called = name or getattr(thing, "__name__", None) or _snake(type(thing).__name__)
    written = thing if inspect.isroutine(thing) else type(thing).__call__
    try:
        hints = get_type_hints(written)
    except (NameError, TypeError) as error:
        raise UserError(f"tool {called!r}: its annotations cannot be read ({error}); correct them") from error
    signature = inspect.signature(thing)
    hidden = [one for one in signature.parameters if hints.get(one) is Context]
    shown = {one: p for one, p in signature.parameters.items() if one not in hidden}
    for one, parameter in shown.items():
        if one not in hints or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise UserError(f"tool {called!r}: its argument {one!r} has no type; annotate every argument by its name")

    def described() -> None: ...

    described.__name__, described.__doc__ = called, inspect.getdoc(written)
    described.__annotations__ = {one: hints[one] for one in shown}
    described.__signature__ = inspect.Signature(list(shown.values()))  # pyright: ignore[reportFunctionMemberAccess]
    try:
        schema = get_json_schema(described)
    except Exception as error:  # each of transformers' own kinds
        reason = " ".join(str(error).split())
        raise UserError(
            f"tool {called!r}: {reason}; give it a docstring with a line on every argument under Args:"
        ) from error
    return Tool(called, thing, schema, hidden[0] if hidden else None)


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def misfit(value: Any, schema: Mapping[str, Any], place: str) -> str | None:
    """Why a value is not what a JSON schema says, of the kind that functions have; None where it is."""
    if value is None and schema.get("nullable"):
        return None
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else list(kinds or ())
    if kinds and not any(_is(value, kind) for kind in kinds):
        return f"{place} must be of type {' or '.join(kinds)}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{place} must be one of {', '.join(map(str, schema['enum']))}"
    if "anyOf" in schema:
        reasons = [misfit(value, one, place) for one in schema["anyOf"]]
        return None if None in reasons else reasons[0]
    if isinstance(value, dict) and "properties" in schema:
        return _object_misfit(value, schema, place)
    if isinstance(value, list):
        first = schema.get("prefixItems")
        if first is not None and len(first) != len(value):
            return f"{place} must have {len(first)} values"
        items = first if first is not None else [schema["items"]] * len(value) if "items" in schema else []
        for i, (one, of) in enumerate(zip(value, items, strict=False)):
            if (wrong := misfit(one, of, f"{place}[{i}]")) is not None:
                return wrong
    return None


def _object_misfit(value: Mapping[str, Any], schema: Mapping[str, Any], place: str) -> str | None:
    known = schema["properties"]
    for name in value:
        if name not in known:
            return f"{place} has no {name!r}, accepted: {', '.join(known) or 'nothing'}"
    for name in schema.get("required", ()):
        if name not in value:
            return f"{place} lacks {name!r}"
    return next((w for name, one in value.items() if (w := misfit(one, known[name], name)) is not None), None)


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return False
    return isinstance(value, TYPES.get(kind, object))
