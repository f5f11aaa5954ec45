"""The lines of prompt files, read so strictly that nothing malformed gets further: PromptError names file and line."""

import json
import reprlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowrl.names import UserError

MAX_DEPTH = 32  # levels of brackets in a record


class PromptError(UserError):
    """Prompts that cannot be read. One line, with file and line number where there are any."""


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of the lines that are not blank. Raises PromptError for what is no UTF-8 text."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a named pipe would be waited for without end
            raise PromptError(f"{path}: is no regular file; give a .txt or .jsonl file")
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: cannot be read as UTF-8 text ({type(error).__name__}); give another file") from None
    # splitlines() would also break at characters that JSON allows inside a string.
    for number, line in enumerate(content.split("\n"), 1):
        if "\0" in line:
            raise PromptError(f"{path}:{number}: holds a NUL character; remove it")
        if line.strip():
            yield number, line.strip()


def record(line: str, where: str) -> dict[str, Any]:
    """The JSON object of a line. Raises PromptError for anything else, and for what JSON leaves open: names twice,
    numbers that are no numbers or too long, half a character, hundreds of levels."""
    try:
        found = json.loads(
            line, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite, parse_int=_whole
        )
        _check(found, MAX_DEPTH)
    except json.JSONDecodeError as error:
        raise PromptError(f"{where}: {error.msg} at column {error.colno}; accepted: one JSON object") from None
    except RecursionError:
        raise PromptError(f"{where}: more than {MAX_DEPTH} levels of brackets; accepted: one JSON object") from None
    except ValueError as error:
        raise PromptError(f"{where}: {error}; accepted: one JSON object") from None
    if not isinstance(found, dict):
        raise PromptError(f"{where}: is a {type(found).__name__}; accepted: one JSON object")
    return found


def short(value: Any) -> str:
    """A value as it is shown in a message."""
    return reprlib.repr(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {short(next(n for n in names if names.count(n) > 1))} is given twice")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _finite(text: str) -> float:
    if (value := float(text)) in (float("inf"), float("-inf")):
        raise ValueError(f"the number {short(text)} is too large")
    return value


def _whole(text: str) -> int:
    if len(text) > 19:  # what fits into 64 bits, which is what rewards make tensors of
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _check(value: Any, levels: int) -> None:
    """Raises ValueError for text that no file can hold, RecursionError for what lies too deep."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = value[error.start : error.start + 1].encode("unicode_escape").decode()
            raise ValueError(f"holds {half}, which is half a character") from None
        if "\0" in value:
            raise ValueError("holds a NUL character")
    elif isinstance(value, dict | list):
        if levels == 0:
            raise RecursionError
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            _check(part, levels - 1)
