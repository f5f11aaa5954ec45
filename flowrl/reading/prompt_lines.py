"""The lines of prompt files, read strictly: anything malformed raises a PromptError that names file and line."""

import hashlib
import json
import reprlib
import stat
from collections.abc import Iterator
from pathlib import Path

from flowrl.names import UserError
from flowrl.untyped import JSON

MAX_DEPTH = 32  # levels of brackets in a record
LIST = "a list of JSON objects"


class PromptError(UserError):
    """Prompts that cannot be read. One line, with file and line number where there are any."""


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text) of the lines that are not blank. Raises PromptError for anything but UTF-8 text."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a named pipe would wait for ever
            raise PromptError(f"{path}: not a regular file; give a .txt or .jsonl file")
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: cannot be read as UTF-8 text ({type(error).__name__}); give another file") from None
    # splitlines() would also break at characters that JSON allows inside a string.
    for number, line in enumerate(content.split("\n"), 1):
        if "\0" in line:
            raise PromptError(f"{path}:{number}: holds a NUL character; remove it")
        if line.strip():
            yield number, line.strip()


def parse_record(line: str, where: str) -> dict[str, JSON]:
    """The JSON object of a line. Raises PromptError for anything else, and for what JSON leaves open: repeated names,
    NaN and infinities, numbers that are too long, half a character, too many levels."""
    value = _parsed(line, where, "one JSON object")
    if not isinstance(value, dict):
        raise PromptError(f"{where}: is a {type(value).__name__}; accepted: one JSON object")
    return value


def parse_records(text: str, where: str) -> list[dict[str, JSON]]:
    """The JSON objects of a list, read as strictly as `parse_record`. Raises PromptError for anything else."""
    value = _parsed(text, where, LIST)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise PromptError(f"{where}: is no list of JSON objects; accepted: {LIST}")
    return value


def _parsed(text: str, where: str, accepted: str) -> JSON:
    try:
        value = json.loads(
            text,
            object_pairs_hook=_record_of_pairs,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            parse_int=_int64,
        )
        _check(value, MAX_DEPTH)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise PromptError(f"{where}: {error.msg} at {at}; accepted: {accepted}") from None
    except RecursionError:
        raise PromptError(f"{where}: more than {MAX_DEPTH} levels of brackets; accepted: {accepted}") from None
    except ValueError as error:
        raise PromptError(f"{where}: {error}; accepted: {accepted}") from None
    return value


def shorten(value: object) -> str:
    """A value, shortened for a message."""
    return reprlib.repr(value)


def _record_of_pairs(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {shorten(next(n for n in names if names.count(n) > 1))} is given twice")
    return record


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _finite_float(text: str) -> float:
    if (value := float(text)) in (float("inf"), float("-inf")):
        raise ValueError(f"the number {shorten(text)} is too large")
    return value


def _int64(text: str) -> int:
    if len(text) > 19:  # rewards make tensors of 64 bits
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _check(value: object, levels: int) -> None:
    """Raises ValueError for text that no file can hold, RecursionError for values nested too deeply."""
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


def text_hash(text: str) -> str:
    """A name for a text: 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
