"""Does a recipe's value fit the annotation of the argument that it goes to? Told from the annotation's text alone.

`int | None`, `typing.Optional[float]`, `Literal["a", "b"]`, `list[str]` and their like are understood, also inside
each other; whatever else an annotation says (`Tensor`, a class of one's own) fits everything.
"""

import ast
from typing import Any

NUMBERS = {"int": "a whole number", "float": "a number"}
PLAIN: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a text"),
    "Path": ((str,), "a path"),
    "None": ((type(None),), "null"),
}
LISTS = ("list", "List", "Sequence", "Iterable", "tuple", "Tuple", "set", "Collection")
MAPPINGS = ("dict", "Dict", "Mapping")


def misfit(text: str, value: Any) -> str | None:
    """What the annotation accepts, in words, where the value does not fit it; else None."""
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return None
    parts = _parts(node)
    if any(_fits(part, value) for part in parts):
        return None
    words = list(dict.fromkeys(_words(part) for part in parts))
    return " or ".join(words)


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
        if _name(node.value) == "Annotated":
            return _parts(inside[0])
    return [node]


def _name(node: ast.expr) -> str:
    """`list` of `list`, `typing.List[int]` and `builtins.list`; empty for what is no name."""
    if isinstance(node, ast.Constant) and node.value is None:
        return "None"
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _fits(node: ast.expr, value: Any) -> bool:
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


def _is_element(node: ast.expr, value: Any) -> bool:
    """Whether a value may stand in a list of this annotation; places of a tuple are not told apart."""
    if not isinstance(node, ast.Subscript):
        return True
    inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    members = [m for m in inside if not (isinstance(m, ast.Constant) and m.value is ...)]
    return any(_fits(part, value) for member in members for part in _parts(member))


def _words(node: ast.expr) -> str:
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
