"""Whether a recipe's value fits the annotation of its argument, decided from the annotation's text alone.

`int | None`, `typing.Optional[float]`, `Literal["a", "b"]`, `list[str]` and the like are understood, also nested; any
other annotation (`Tensor`, a user's own class) accepts everything. A text in
`Annotated[int, ">= 1"]` or `Annotated[float, "in [0, 1)"]` limits the numbers; any other text, such as
`Annotated[list[int], "a list of steps that rise"]`, is what an error message says is accepted.
"""

import ast
import re
from typing import Annotated, Any, Literal, Union

from pydantic import Field

from flowrl.untyped import JSON

NUMBERS = {"int": "a whole number", "float": "a number"}
PLAIN: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a text"),
    "Path": ((str,), "a path"),
    "None": ((type(None),), "null"),
}
LISTS = ("list", "List", "Sequence", "Iterable", "tuple", "Tuple", "set", "Collection")
MAPPINGS = ("dict", "Dict", "Mapping")


def accepted_if_misfit(text: str, value: JSON) -> str | None:
    """What the annotation accepts, in words, if the value does not fit it; else None."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return None
    if any(_fits(part, value) for part in _parts(node)):
        return None
    return words(text)


def words(text: str) -> str:
    """What an annotation accepts, in words."""
    parts = _parts(ast.parse(text.strip(), mode="eval").body)
    accepted = list(dict.fromkeys(_words(part) for part in parts))
    listed = all(isinstance(part, ast.Constant) for part in parts)  # choices, not kinds of values
    return f"{', '.join(accepted[:-1])} or {accepted[-1]}" if listed and len(accepted) > 1 else " or ".join(accepted)


def as_type(text: str) -> Any:
    """The annotation as a type for pydantic, with its limits; sequences are lists, what is not understood is Any."""
    members = [_as_type(part) for part in _parts(ast.parse(text.strip(), mode="eval").body)]
    choices = [member.value for member in members if isinstance(member, ast.Constant)]
    types = [member for member in members if not isinstance(member, ast.Constant)]
    types = ([Literal[tuple(choices)]] if choices else []) + types  # pyright: ignore[reportInvalidTypeForm]
    return Union[tuple(types)]  # noqa: UP007 - of a list


def _parts(node: ast.expr) -> list[ast.expr]:
    """The members of a union, or the annotation itself."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_parts(node.left), *_parts(node.right)]
    if isinstance(node, ast.Subscript):
        inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if _name(node.value) == "Union":
            return [part for member in inside for part in _parts(member)]
        if _name(node.value) == "Optional":
            return [*_parts(inside[0]), ast.Constant(None)]
        if _name(node.value) == "Literal":
            return list(inside)
        if _name(node.value) == "Annotated" and _text(node) is None:
            return _parts(inside[0])
    return [node]


def _text(node: ast.expr) -> str | None:
    """The text of an `Annotated[..., "text"]`."""
    if not (isinstance(node, ast.Subscript) and _name(node.value) == "Annotated" and isinstance(node.slice, ast.Tuple)):
        return None
    texts = [m.value for m in node.slice.elts[1:] if isinstance(m, ast.Constant) and isinstance(m.value, str)]
    return texts[0] if texts else None


def _limits(text: str) -> dict[str, float]:
    """The bounds that a text sets, in pydantic's words."""
    number, names = r"(-?[\d.e^]+)", {">=": "ge", ">": "gt", "<=": "le", "<": "lt"}
    if between := re.search(rf"in ([\[(]){number}, {number}([\])])", text):
        low, high = "ge" if between[1] == "[" else "gt", "le" if between[4] == "]" else "lt"
        return {low: float(between[2]), high: float(between[3])}
    limits_text = re.search(rf"((?:>=|>|<=|<) {number}(?: and (?:>=|>|<=|<) {number})?)(?:,? or null)?$", text)
    return {
        names[sign]: float(limit)
        for sign, limit in re.findall(rf"(>=|>|<=|<) {number}", limits_text[0] if limits_text else "")
    }


def _holds(text: str, value: JSON) -> bool:
    """Whether a number, or every number of a list, is within the limits of a text; True for anything else."""
    numbers = value if isinstance(value, list) else [value]
    limits = {name: limit for name, limit in _limits(text).items()}
    tests = {"ge": float.__ge__, "gt": float.__gt__, "le": float.__le__, "lt": float.__lt__}
    return all(
        tests[name](float(number), limit)
        for number in numbers
        if isinstance(number, int | float) and not isinstance(number, bool)
        for name, limit in limits.items()
    )


def _as_type(node: ast.expr) -> Any:
    text = _text(node)
    if text is not None and isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
        inner = as_type(ast.unparse(node.slice.elts[0]))
        limits: dict[str, JSON] = _limits(text) if inner in (int, float, int | None, float | None) else {}
        return Annotated[inner, Field(**limits)] if limits else inner  # pyright: ignore[reportArgumentType]
    if isinstance(node, ast.Constant) and node.value is not None:
        return node
    name = _name(node.value if isinstance(node, ast.Subscript) else node)
    plain = {"int": int, "float": float, "bool": bool, "str": str, "Path": str, "None": None}
    if name in plain:
        return plain[name]
    if name in MAPPINGS:
        return dict[str, Any]
    if name in LISTS:
        inside = _elements(node)
        return list[as_type(ast.unparse(inside[0]))] if inside else list[Any]
    return Any


def _name(node: ast.expr) -> str:
    """`list` of `list`, `typing.List[int]` and `builtins.list`; empty for what is no name."""
    if isinstance(node, ast.Constant) and node.value is None:
        return "None"
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _fits(node: ast.expr, value: JSON) -> bool:
    if (text := _text(node)) is not None and isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
        return any(_fits(part, value) for part in _parts(node.slice.elts[0])) and _holds(text, value)
    if isinstance(node, ast.Constant) and node.value is not None:  # of a Literal
        return type(value) is type(node.value) and value == node.value
    head = node.value if isinstance(node, ast.Subscript) else node
    name = _name(head)
    if name in NUMBERS:
        return type(value) in ((int,) if name == "int" else (int, float))
    if name in PLAIN:
        return isinstance(value, PLAIN[name][0])
    if name in MAPPINGS:
        return isinstance(value, dict)
    if name in LISTS:
        return isinstance(value, list) and all(_is_element(node, element) for element in value)
    return True


def _is_element(node: ast.expr, value: JSON) -> bool:
    """Whether a list with this annotation may contain a value; the positions of a tuple are not distinguished."""
    members = _elements(node)
    return not members or any(_fits(part, value) for member in members for part in _parts(member))


def _elements(node: ast.expr) -> list[ast.expr]:
    """The annotations inside the brackets of a list's annotation."""
    if not isinstance(node, ast.Subscript):
        return []
    inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return [m for m in inside if not (isinstance(m, ast.Constant) and m.value is ...)]


def _words(node: ast.expr) -> str:
    if (text := _text(node)) is not None and isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
        bound = text.startswith((">", "<", "in [", "in ("))
        return f"{words(ast.unparse(node.slice.elts[0]))} {text}" if bound else text
    if isinstance(node, ast.Constant) and node.value is not None:
        return str(node.value)
    head = node.value if isinstance(node, ast.Subscript) else node
    name = _name(head)
    if name in NUMBERS:
        return NUMBERS[name]
    if name in PLAIN:
        return PLAIN[name][1]
    if name in MAPPINGS:
        return "a mapping"
    if not isinstance(node, ast.Subscript):
        return "a list"
    inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    kinds = [_words(p) for m in inside if not isinstance(m, ast.Constant) for p in _parts(m)]
    return f"a list of: {' or '.join(dict.fromkeys(kinds))}" if kinds else "a list"
