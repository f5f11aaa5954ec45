"""Facts that take seconds of imports to compute and never change: looked up before anything heavy is loaded.

There are two places: `remembered.json` beside this file, with what the plans of the shipped recipes need, written by
`python -m flowrl.planning.sizes.shipped`; and the user's cache (`$XDG_CACHE_HOME/flowrl`, else `~/.cache/flowrl`), one
file for each set of versions of the libraries and of the code that computes the facts. Both may be missing.
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


def look_up(kind: str, key: Any, find: Callable[[], Any]) -> Any:
    """The result of `find` for this JSON-able key, as read back from JSON; exceptions are not stored."""
    name = digest(kind, key)
    shipped = _read(SHIPPED)
    if name in shipped:
        return shipped[name]
    file = _cache_file()
    known = _read(file)
    if name not in known:
        fact = json.loads(json.dumps(find()))
        known = _read(file) | {name: fact}
        _write(file, known)
    return known[name]


def digest(*parts: Any) -> str:
    """A short digest of JSON-able parts."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _cache_file() -> Path:
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
        facts = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or truncated: compute it again
        return {}
    return facts if isinstance(facts, dict) else {}


def _write(file: Path, known: dict[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(known, sort_keys=True), encoding="utf-8")
        beside.replace(file)
    except OSError:  # an unwritable home folder: the next command computes it again
        return
