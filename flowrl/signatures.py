"""What a function or class may be given, read off its source without importing it, or off the object itself.

A recipe is checked before torch is loaded, and the keys of a part are the arguments of the code that uses them: so they
are parsed. Of a class they are the arguments of `__init__`, or the fields of a dataclass.
"""

import ast
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard


class Computed:
    """Stands for a default that is worked out when the module is imported."""

    def __repr__(self) -> str:
        return "..."


NO_DEFAULT, COMPUTED = object(), Computed()


@dataclass(frozen=True)
class Parameter:
    """An argument: its name, its annotation as text (empty: none), and its default."""

    name: str
    annotation: str = ""
    default: Any = NO_DEFAULT

    @property
    def type(self) -> str:
        """The annotation, with None where that is the default."""
        return f"{self.annotation} | None" if self.annotation and self.default is None else self.annotation


@dataclass(frozen=True)
class Signature:
    """The arguments that may be set by name. any: whether others are taken too."""

    parameters: tuple[Parameter, ...] = ()
    any: bool = False


@dataclass(frozen=True)
class Entry:
    """A named part: a step, reward, window ... facts: what is said of it beside its code, such as `stochastic`."""

    name: str
    module: str
    attribute: str
    doc: str
    signature: Signature
    facts: Mapping[str, Any] = field(default_factory=dict)
    is_class: bool = False

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self.doc.split("\n")[0]

    @property
    def accepts(self) -> tuple[str, ...] | None:
        """Its keyword arguments; None: any."""
        return None if self.signature.any else tuple(p.name for p in self.signature.parameters)

    @property
    def needs(self) -> tuple[str, ...]:
        """The arguments without a default."""
        parameters = () if self.signature.any else self.signature.parameters
        return tuple(p.name for p in parameters if p.default is NO_DEFAULT)

    @property
    def types(self) -> dict[str, str]:
        """The annotations of its arguments, where they have one."""
        return {p.name: p.type for p in self.signature.parameters if p.annotation}

    @property
    def stochastic(self) -> bool:
        """Of a step: whether it draws."""
        return bool(self.facts.get("stochastic", True))


def of_object(thing: Any, skip: int) -> Signature:
    """The arguments of a callable after `skip` leading ones."""
    try:
        given = list(inspect.signature(thing).parameters.values())
    except (ValueError, TypeError):  # written in C without a signature
        return Signature(any=True)
    named = [p for p in given if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)][skip:]
    parameters = (
        Parameter(p.name, _text(p.annotation), NO_DEFAULT if p.default is p.empty else p.default) for p in named
    )
    return Signature(tuple(parameters), any(p.kind is p.VAR_KEYWORD for p in given))


def _text(annotation: Any) -> str:
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def scan(
    folder: Path, package: str, leading: tuple[str, ...], methods: tuple[tuple[str, ...], ...] = ()
) -> dict[str, Entry]:
    """Public top-level functions of a folder's files that begin with these parameters, and classes called with them.

    methods: sets of them; where there are any, it is the classes that have all methods of one set.
    """
    entries: dict[str, Entry] = {}
    for path in sorted(folder.glob("*.py")):
        body = _parsed(path)
        for node in body:
            if _has_methods(node, methods) or (not methods and _is_part(node, leading)):
                entries[node.name] = _entry(node.name, node, f"{package}.{path.stem}", len(leading), File(path, body))
    return entries


def table(path: Path, module: str, name: str, leading: int) -> dict[str, Entry]:
    """The entries of a top-level `name = {"short name": function_or_class, ...}`; those stand in the same file."""
    body = _parsed(path)
    defined = {node.name: node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    pairs = next(pairs for target, pairs in _dictionaries(body) if target == name)
    return {short: _entry(short, defined[attribute], module, leading, File(path, body)) for short, attribute in pairs}


def _dictionaries(body: list[ast.stmt]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for node in body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Dict):
            yield (
                target.id,
                [
                    (key.value, item.id)
                    for key, item in zip(value.keys, value.values, strict=True)
                    if isinstance(key, ast.Constant) and isinstance(key.value, str) and isinstance(item, ast.Name)
                ],
            )


def _is_part(node: ast.stmt, leading: tuple[str, ...]) -> TypeGuard[ast.FunctionDef | ast.ClassDef]:
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
        return _names(node.args)[: len(leading)] == leading
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        called = _method(node, "__call__")
        return called is not None and _names(called)[1 : len(leading) + 1] == leading
    return False


def _has_methods(node: ast.stmt, methods: tuple[tuple[str, ...], ...]) -> TypeGuard[ast.ClassDef]:
    if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
        return False
    return any(all(_method(node, name) is not None for name in names) for names in methods)


def _entry(name: str, node: Any, module: str, leading: int, file: "File") -> Entry:
    doc = ast.get_docstring(node) or ""
    facts = (
        _declared(node, file)
        | dict(_decorated(node))
        | {what: value for of, what, value in _marks(file.body) if of == node.name}
    )
    if isinstance(node, ast.FunctionDef):
        return Entry(name, module, node.name, doc, _signature(node.args, leading), facts)
    made = _method(node, "__init__")
    if made is None:
        return Entry(name, module, node.name, doc, Signature(tuple(_fields(node, file).values())), facts, True)
    return Entry(name, module, node.name, _documented(node, doc), _signature(made, 1), facts, True)


def _documented(node: ast.ClassDef, doc: str) -> str:
    """What a class says of itself, and its __init__ of the arguments."""
    made = next(one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__")
    return "\n\n".join(text for text in (doc, ast.get_docstring(made)) if text)


def _declared(node: Any, file: "File") -> dict[str, Any]:
    """What a class says of itself and of those that come of it: its attributes that are true or false."""
    if not isinstance(node, ast.ClassDef):
        return {}
    declared: dict[str, Any] = {}
    for base in reversed(node.bases):
        if isinstance(base, ast.Name) and (found := file.find_class(base.id)) is not None:
            declared |= _declared(*found)
    for item in node.body:
        if (
            isinstance(item, ast.Assign)
            and isinstance(item.targets[0], ast.Name)
            and _value(item.value) in (True, False)
        ):
            declared[item.targets[0].id] = _value(item.value)
    return declared


def _method(node: ast.ClassDef, name: str) -> ast.arguments | None:
    return next((m.args for m in node.body if isinstance(m, ast.FunctionDef) and m.name == name), None)


@dataclass(frozen=True)
class File:
    """A file of ours and its statements."""

    path: Path
    body: list[ast.stmt]

    def find_class(self, name: str) -> "tuple[ast.ClassDef, File] | None":
        """The class of this name, and the file that defines it: this one, or one of ours that it is imported from."""
        for node in self.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return node, self
            if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
                parts = (node.module or "").split(".")
                places = (parent.joinpath(*parts).with_suffix(".py") for parent in self.path.parents)
                place = next((p for p in places if p.is_file()), None)
                return None if place is None else File(place, _parsed(place)).find_class(name)
        return None


def _parsed(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text(encoding="utf-8")).body


def _fields(node: ast.ClassDef, file: File) -> dict[str, Parameter]:
    """The fields of a dataclass by name, in its order: those of its bases first, with the defaults that it gives.

    A class that is not decorated as a dataclass has none of its own.
    """
    fields: dict[str, Parameter] = {}
    for base in reversed(node.bases):
        if isinstance(base, ast.Name) and (defined := file.find_class(base.id)) is not None:
            fields |= _fields(*defined)
    decorated = any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
    for field_ in node.body if decorated else ():
        if isinstance(field_, ast.AnnAssign) and isinstance(field_.target, ast.Name):
            if not ast.unparse(field_.annotation).startswith("ClassVar"):
                fields[field_.target.id] = _parameter(field_.target.id, field_.annotation, field_.value)
    return fields


def _signature(arguments: ast.arguments, skip: int) -> Signature:
    positional = arguments.posonlyargs + arguments.args
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = list(zip(positional, defaults, strict=True))[skip:]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return Signature(tuple(_parameter(a.arg, a.annotation, d) for a, d in pairs), arguments.kwarg is not None)


def _parameter(name: str, annotation: ast.expr | None, default: ast.expr | None) -> Parameter:
    return Parameter(name, "" if annotation is None else ast.unparse(annotation), _value(default))


def _value(node: ast.expr | None) -> Any:
    if node is None:
        return NO_DEFAULT
    try:
        return ast.literal_eval(node)
    except ValueError:
        return COMPUTED


def _names(arguments: ast.arguments) -> tuple[str, ...]:
    return tuple(a.arg for a in arguments.posonlyargs + arguments.args)


def _decorated(node: Any) -> Iterator[tuple[str, Any]]:
    """The keywords of a decorator `@facts(...)`."""
    for call in node.decorator_list:
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "facts":
            yield from ((k.arg, ast.literal_eval(k.value)) for k in call.keywords if k.arg is not None)


def _marks(body: list[ast.stmt]) -> Iterator[tuple[str, str, Any]]:
    """(function, fact, value) of every top-level `function.fact = value`."""
    for node in body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and isinstance(node, ast.Assign):
            value = _value(node.value)
            if value is not COMPUTED:
                yield target.value.id, target.attr, value


def facts_of(thing: Any) -> dict[str, Any]:
    """What is said of an object beside its code: the plain values of its public attributes."""
    plain = (bool, int, float, str, dict, tuple, type(None))
    holders = reversed(thing.__mro__) if inspect.isclass(thing) else [thing]
    held = {name: value for holder in holders for name, value in getattr(holder, "__dict__", {}).items()}
    return {name: value for name, value in held.items() if not name.startswith("_") and isinstance(value, plain)}
