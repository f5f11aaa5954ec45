"""Names a recipe may use, and the objects behind them.

A short name belongs to a file of ours, a dotted path (`my_rewards.redness`, `my_rewards:Redness`) to a user's. Nothing
is registered: steps are the functions `(x, v, s, s_next, ...)` of samplers/*.py, rewards the functions `(samples, ...)`
and the classes with `__call__(self, samples)` of reward_models/*.py, recipes the files recipes/*.yaml. They are found
by parsing, so that a recipe is checked without importing torch.
"""

import ast
import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from flowrl.parts import refusal

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
WORLDS = Path(__file__).parent / "worlds"
MODELS = {
    "shapes-flux": WORLDS / "shapes" / "assets" / "shapes-flux",
    "arithmetic-qwen2": WORLDS / "arithmetic" / "assets" / "arithmetic-qwen2",
}
WORLD_PROMPTS = ("shapes/train", "shapes/heldout", "arithmetic/train", "arithmetic/heldout")


def cache_folder() -> Path:
    """The user's cache of flowrl: `$XDG_CACHE_HOME/flowrl`, else `~/.cache/flowrl`; it may not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flowrl"


class UserError(ValueError):
    """A mistake in what the user gave. The text is one line: what was given, what is accepted, what to do."""


@dataclass(frozen=True)
class Entry:
    """A named step or reward. `accepts` are its keyword arguments (None: any), `needs` those without a default, `types`
    the annotations of those that have one."""

    name: str
    module: str
    attribute: str
    summary: str
    accepts: tuple[str, ...] | None
    needs: tuple[str, ...]
    stochastic: bool = True
    types: Mapping[str, str] = field(default_factory=dict)


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was probably meant to be."""
    matches = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return matches[0] if matches else None


def hint(name: str, known: Iterable[str]) -> str:
    """A clause to end a message with: '; did you mean X?', or nothing."""
    match = closest(name, known)
    return f"; did you mean {match!r}?" if match else ""


def to_be_fetched(source: str | None, origin: str | None) -> bool:
    """Whether prompts named FOLDER/.../FILE are the published ones, which do not ship, and are not here yet.

    origin: how to get them, as the recipe says it. Shorter names are files, worlds or data sets of the hub.
    """
    if source is None or origin is None or source.startswith((".", "/", "~")):
        return False
    return source.count("/") >= 2 and not Path(source).exists()


def steps() -> dict[str, Entry]:
    """The denoising steps that ship, by short name."""
    return _scan("samplers", ("x", "v", "s", "s_next"))


def rewards() -> dict[str, Entry]:
    """The rewards that ship, by short name."""
    return _scan("reward_models", ("samples",))


def recipes() -> dict[str, Path]:
    """The recipes that ship, by short name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def is_dotted(name: str) -> bool:
    """Whether a name is a path to a user's object rather than a short name."""
    return "." in name or ":" in name


def find(name: str, known: dict[str, Entry], kind: str = "reward") -> Entry:
    """The entry of a short name, or of the object at a dotted path, which is imported but not called.

    Raises UserError for a name that is neither, and for an object that is no part of this kind (see parts.py).
    """
    if not is_dotted(name):
        if name not in known:
            listed = ", ".join(sorted(known))
            raise UserError(f"{name!r} is not known; accepted: {listed}, or a dotted path{hint(name, known)}")
        return known[name]
    thing = import_path(name)
    if problem := refusal(thing, kind):
        raise UserError(f"{name!r} {problem}")
    skip = 1 if not inspect.isclass(thing) else 0
    accepts, needs = signature(thing, skip)
    module, attribute = _split(name)
    drawn = bool(getattr(thing, "stochastic", True))
    return Entry(name, module, attribute, _first_line(inspect.getdoc(thing)), accepts, needs, drawn, types(thing))


def load(name: str, known: dict[str, Entry], kind: str = "reward") -> Any:
    """The object itself behind a short name or a dotted path; see `find`."""
    entry = find(name, known, kind)
    return getattr(importlib.import_module(entry.module), entry.attribute)


def import_path(path: str) -> Any:
    """The object at `package.module.name` or `package.module:name`; modules of the current directory are found too.

    Raises UserError, in one line, for a path that leads nowhere or a module that fails to import.
    """
    module_name, attribute = _split(path)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: a user's file never hides an installed package
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise UserError(f"{path!r} cannot be imported: {_reason(error)}; run where {module_name!r} imports") from error
    if not hasattr(module, attribute):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise UserError(f"{module_name!r} has no {attribute!r}; accepted: a name it defines{hint(attribute, public)}")
    return getattr(module, attribute)


def _split(path: str) -> tuple[str, str]:
    module, _, attribute = path.rpartition(":") if ":" in path else path.rpartition(".")
    if not module or not attribute:
        raise UserError(f"{path!r} is no dotted path; accepted: module.name or module:name")
    return module, attribute


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def signature(thing: Any, skip: int) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """(keyword arguments or None where any is taken, those that must be given) after `skip` leading parameters."""
    try:
        parameters = list(inspect.signature(thing).parameters.values())
    except ValueError:  # written in C without a signature
        return None, ()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None, ()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)][skip:]
    return tuple(p.name for p in named), tuple(p.name for p in named if p.default is p.empty)


def types(thing: Any) -> dict[str, str]:
    """The annotations of a callable's parameters as text, with None where that is the default."""
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (ValueError, TypeError):
        return {}
    found = {}
    for parameter in parameters:
        if parameter.annotation is not parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
            written = parameter.annotation
            text = written if isinstance(written, str) else inspect.formatannotation(written)
            found[parameter.name] = f"{text} | None" if parameter.default is None else text
    return found


@cache
def _scan(package: str, leading: tuple[str, ...]) -> dict[str, Entry]:
    """Public top-level functions of a package that begin with these parameters, and classes called with them."""
    found: dict[str, Entry] = {}
    for path in sorted(_folder(package).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        quiet = {_marked_quiet(node) for node in tree.body}
        for node in tree.body:
            match = _match(node, leading)
            if match is not None:
                name, arguments, skip = match
                accepts, needs = _arguments(arguments, skip)
                module = f"{package}.{path.stem}"
                doc = _first_line(ast.get_docstring(node))  # pyright: ignore[reportArgumentType]
                drawn = name not in quiet
                found[name] = Entry(name, module, name, doc, accepts, needs, drawn, _written_types(arguments))
    return found


def _folder(package: str) -> Path:
    """Where a package of ours lies; nothing of it is imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return ROOT / package
    return Path(next(iter(spec.submodule_search_locations)))


def _match(node: ast.stmt, leading: tuple[str, ...]) -> tuple[str, ast.arguments, int] | None:
    """(name, arguments that a recipe may set, how many of them to skip) of a step or reward, else None."""
    if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
        return (node.name, node.args, len(leading)) if _names(node.args)[: len(leading)] == leading else None
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        methods = {m.name: m.args for m in node.body if isinstance(m, ast.FunctionDef)}
        called = methods.get("__call__")
        if called is not None and _names(called)[1 : len(leading) + 1] == leading:
            return node.name, methods.get("__init__", ast.parse("def f(self): ...").body[0].args), 1  # pyright: ignore
    return None


def _names(arguments: ast.arguments) -> tuple[str, ...]:
    return tuple(a.arg for a in arguments.posonlyargs + arguments.args)


def _arguments(arguments: ast.arguments, skip: int) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    if arguments.kwarg is not None:
        return None, ()
    positional = _names(arguments)
    free = positional[skip:]
    with_default = positional[len(positional) - len(arguments.defaults) :] if arguments.defaults else ()
    keyword = [a.arg for a in arguments.kwonlyargs]
    bare = [a.arg for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is None]
    return (*free, *keyword), (*(n for n in free if n not in with_default), *bare)


def _written_types(arguments: ast.arguments) -> dict[str, str]:
    """What `types` gives, of a function that is not imported."""
    positional = arguments.posonlyargs + arguments.args
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    found = {}
    for argument, default in pairs:
        if argument.annotation is not None:
            may_be_none = isinstance(default, ast.Constant) and default.value is None
            found[argument.arg] = ast.unparse(argument.annotation) + (" | None" if may_be_none else "")
    return found


def _marked_quiet(node: ast.stmt) -> str | None:
    """NAME of a top-level `NAME.stochastic = False`."""
    if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and node.value.value is False):
        return None
    target = node.targets[0]
    if isinstance(target, ast.Attribute) and target.attr == "stochastic" and isinstance(target.value, ast.Name):
        return target.value.id
    return None


def _first_line(doc: str | None) -> str:
    return (doc or "").strip().split("\n")[0]
