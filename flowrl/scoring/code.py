"""A digest of a reward's source and of everything of ours and the user's that it imports.

Scores computed by other code are not comparable. Third-party packages count by their versions.
"""

import ast
import hashlib
import importlib.metadata
import inspect
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType

OURS = {"flowrl", "reward_models"}
INSTALLED = {"site-packages", "dist-packages"}
NAMED = {"PIL": "pillow", "cv2": "opencv-python", "yaml": "pyyaml"}  # distributions that their packages do not name


def digest(reward: object) -> str | None:
    """SHA-256 of the code of a function or object, hexadecimal; None if there is no source to read."""
    files: dict[Path, str] = {}
    others: set[str] = set()
    for module in _modules(reward):
        if (file := getattr(module, "__file__", None)) is None or not Path(file).is_file():
            return None
        _gather(Path(file).resolve(), module.__name__, files, others)
    if not files:
        return None
    versions = [f"{name} {version}" for name in sorted(others) if (version := _version(name)) is not None]
    # sorted by content, not by place: the same code in another folder is the same code
    return hashlib.sha256("\n".join([*sorted(files.values()), *versions]).encode()).hexdigest()


def _modules(reward: object) -> Iterator[ModuleType]:
    """The modules that define a callable, the functions that it wraps, and its base classes."""
    while isinstance(reward, partial):
        reward = reward.func
    things = [reward] if isinstance(reward, FunctionType) or inspect.isclass(reward) else [type(reward)]
    for thing in [base for one in things for base in (inspect.getmro(one) if inspect.isclass(one) else [one])]:
        while thing is not None:  # a decorated function includes what it wraps
            if thing.__module__ not in sys.stdlib_module_names:
                yield sys.modules[thing.__module__]
            thing = getattr(thing, "__wrapped__", None)


def _gather(file: Path, name: str, files: dict[Path, str], others: set[str]) -> None:
    """Adds a file, module `name`, and what it imports, at any depth; third parties are added to others."""
    if file in files:
        return
    source = file.read_bytes()
    files[file] = f"{name} {hashlib.sha256(source).hexdigest()}"
    parts = name.split(".")
    root = file.parents[len(parts) - (file.name != "__init__.py")]
    installed = bool(INSTALLED & set(root.parts))
    for imported in _imports(ast.parse(source), name if file.name == "__init__.py" else name.rpartition(".")[0]):
        top = imported.split(".")[0]
        follow = top in OURS or top == parts[0] or not installed
        located = list(_locate(root, imported)) if follow else []
        for module, place in located:
            _gather(place, module, files, others)
        if not located and top not in sys.stdlib_module_names:
            others.add(top)


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names that a file imports, inside functions too; of `from a import b` both a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}".strip(".") for alias in node.names)


def _locate(root: Path, name: str) -> Iterator[tuple[str, Path]]:
    """(module, file) of a dotted name below a folder, and of the packages above it."""
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        place, module = root.joinpath(*parts[:depth]), ".".join(parts[:depth])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                yield module, file.resolve()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(NAMED.get(package, package))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
