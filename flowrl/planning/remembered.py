"""Facts that take seconds of importing to find out and stay as they are: looked up before anything heavy is loaded.

Two places are asked: `remembered.json` beside this file, which ships what the plans of the shipped recipes need and is
made by `python -m flowrl.planning.sizes.shipped`; and the user's cache (`$XDG_CACHE_HOME/flowrl`, else
`~/.cache/flowrl`), one
file for each set of versions of the libraries and of the code that finds the facts out. Both may be missing.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowrl.names import cache_folder

HERE = Path(__file__).parent
SHIPPED = HERE / "remembered.json"
LIBRARIES = ("torch", "diffusers", "transformers", "peft")


def remembered(kind: str, key: Any, find: Callable[[], Any]) -> Any:
    """What `find` gives for this key, as JSON gives it back; what it raises is not remembered. key: JSON-able."""
    name = digest(kind, key)
    shipped = _read(SHIPPED)
    if name in shipped:
        return shipped[name]
    file = _cache()
    known = _read(file)
    if name not in known:
        found = json.loads(json.dumps(find()))
        known = _read(file) | {name: found}
        _write(file, known)
    return known[name]


def digest(*parts: Any) -> str:
    """A short name of JSON-able parts, equal for equal ones."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _cache() -> Path:
    """The user's file for the installed versions and this code."""
    versions = []
    for library in LIBRARIES:
        try:
            versions.append(importlib.metadata.version(library))
        except importlib.metadata.PackageNotFoundError:
            versions.append("none")
    code = [hashlib.blake2b(path.read_bytes()).hexdigest() for path in sorted((HERE / "sizes").glob("*.py"))]
    return cache_folder() / f"{digest(versions, code)}.json"


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or cut short: it is found out again
        return {}
    return found if isinstance(found, dict) else {}


def _write(file: Path, known: dict[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(known, sort_keys=True), encoding="utf-8")
        beside.replace(file)
    except OSError:  # a home that cannot be written: the next command finds out again
        return
