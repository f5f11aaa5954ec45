"""Names a recipe may use, and the objects behind them.

A short name refers to a part that ships, a dotted path (`my_rewards.redness`, `my_rewards:Redness`) to a user's own.
Nothing is registered: steps are the functions `(x, v, s, s_next, ...)` of samplers/*.py, rewards the functions
`(samples, ...)` and the classes with `__call__(self, samples)` of reward_models/*.py, recipes the files recipes/*.yaml;
parts.py says where the others are. They are found by parsing, so that a recipe is checked without importing torch.
"""

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from flowrl import signatures
from flowrl.parts import KINDS, refusal
from flowrl.signatures import Entry, of_object

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
WORLDS = Path(__file__).parent / "worlds"
MODELS = {
    "shapes-flux": WORLDS / "shapes" / "assets" / "shapes-flux",
    "arithmetic-qwen2": WORLDS / "arithmetic" / "assets" / "arithmetic-qwen2",
    "look-llava": WORLDS / "shapes_look" / "assets" / "look-llava",
}
MANY, FEW = 20, 12  # a message lists up to MANY names in full, and of longer lists the FEW closest
LONGEST_TOLD = 80  # characters of an unknown name in a message
WORLD_PROMPTS = tuple(
    f"{world}/{split}" for world in ("shapes", "arithmetic", "shapes-look") for split in ("train", "heldout")
)


def cache_folder() -> Path:
    """The user's cache of flowrl: `$XDG_CACHE_HOME/flowrl`, else `~/.cache/flowrl`; it may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flowrl"


class UserError(ValueError):
    """A mistake in the user's input. The text is one line: what was given, what is accepted, what to do."""


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is closest to `name`; None if none is close."""
    matches = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return matches[0] if matches else None


def hint(name: str, known: Iterable[str]) -> str:
    """The end of a message: '; did you mean X?', or nothing."""
    match = closest(name, known)
    return f"; did you mean {match!r}?" if match else ""


def to_be_fetched(source: str | None, origin: str | None) -> bool:
    """Whether prompts named FOLDER/.../FILE are published ones that do not ship and have not been downloaded yet.

    origin: how to get them, from the recipe. Shorter names are files, worlds or data sets of the hub.
    """
    if source is None or origin is None or source.startswith((".", "/", "~")):
        return False
    return source.count("/") >= 2 and not Path(source).exists()


@cache
def shipped(kind: str) -> dict[str, Entry]:
    """The parts of a kind that ship, by short name (see parts.KINDS)."""
    leading, where = KINDS[kind].leading, KINDS[kind].shipped
    if not where:
        return {}
    module, _, table_name = where.partition(":")
    if not table_name:
        return signatures.scan(_folder(module), module, leading, KINDS[kind].methods)
    package, _, file = module.rpartition(".")
    return signatures.table(_folder(package) / f"{file}.py", module, table_name, len(leading))


def steps() -> dict[str, Entry]:
    """The denoising steps that ship, by short name."""
    return shipped("step")


def rewards() -> dict[str, Entry]:
    """The rewards that ship, by short name."""
    return shipped("reward")


def recipes() -> dict[str, Path]:
    """The recipes that ship, by short name."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def is_dotted(name: str) -> bool:
    """Whether a name is a path to a user's object rather than a short name."""
    return "." in name or ":" in name


def find(name: str, known: dict[str, Entry], kind: str = "reward") -> Entry:
    """The entry of a short name, or of the object at a dotted path, which is imported but not called.

    Raises UserError for a name that is neither, and for an object that is not a part of this kind (see parts.py).
    """
    if not is_dotted(name):
        if name not in known:
            listed = (
                f"{some(name, sorted(known), f'flowrl list {kind}s')}, or a dotted path" if known else "a dotted path"
            )
            given = name if len(name) <= LONGEST_TOLD else f"{name[:LONGEST_TOLD]}..."
            raise UserError(f"{given!r} is not known; accepted: {listed}{hint(name, known)}")
        return known[name]
    thing = import_path(name)
    if problem := refusal(thing, kind):
        raise UserError(f"{name!r} {problem}")
    skip = 0 if inspect.isclass(thing) else len(KINDS[kind].leading) if kind in KINDS else 1
    module, attribute = _split(name)
    doc = inspect.getdoc(thing) or ""
    signature, facts = signatures.of_object(thing, skip), signatures.facts_of(thing)
    return Entry(name, module, attribute, doc, signature, facts, inspect.isclass(thing))


def some(name: str, known: Iterable[str], where: str) -> str:
    """Names in a message: all of them, or, of many, those closest to the one that was given, and where the rest are.

    where: the command or page that lists them all.
    """
    known = list(known)
    if len(known) <= MANY:
        return ", ".join(known)
    near = difflib.get_close_matches(name[:LONGEST_TOLD], known, n=FEW, cutoff=0.0)
    return f"{', '.join(sorted(near))} and {len(known) - len(near)} more ({where})"


def load(name: str, known: dict[str, Entry], kind: str = "reward") -> Any:
    """The object behind a short name or a dotted path; see `find`."""
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
        raise UserError(f"{path!r} is not a dotted path; accepted: module.name or module:name")
    return module, attribute


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def signature(thing: Any, skip: int) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """(accepted keyword arguments, None for any; required ones) after `skip` leading parameters."""
    entry = Entry("", "", "", "", of_object(thing, skip))
    return entry.accepts, entry.needs


def types(thing: Any) -> dict[str, str]:
    """The annotations of a callable's parameters as text, including None if that is the default."""
    return {p.name: p.type for p in of_object(thing, 0).parameters if p.annotation}


def _folder(package: str) -> Path:
    """The folder of one of our packages, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return ROOT / package
    return Path(next(iter(spec.submodule_search_locations)))
