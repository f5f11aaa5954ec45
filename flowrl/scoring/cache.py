"""Scores that are known already, by what they are scores of: for rewards that are slow or cost money.

A key is the SHA-256 of the reward's name, code, arguments and checkpoint files, and of the sample: its exact pixels
with shape and dtype, or its text, and prompt, meta, call and media files. A sample without a score is asked about
again.
"""

import contextlib
import hashlib
import json
import math
import sqlite3
import struct
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flowrl.contracts import Samples, Steps
from flowrl.names import UserError
from flowrl.untyped import JSON

STEPS = b"S"  # the first byte of steps in a file
LARGEST = 200_000  # scores that are kept in memory
LARGEST_READ = 2**24  # bytes of a file that is known by its content
MOST_FILES = 10_000  # of a folder that the arguments name


Value = float | Steps  # what is known of a sample: its score, or the steps that a process reward valued


class CachedScores(NamedTuple):
    """Scores float32 [B], what of them the cache does not hold yet, by key, and steps that make them up."""

    scores: Tensor
    new: Mapping[bytes, Value] = {}
    steps: list[Steps] | None = None


class ScoreCache:
    """Scores of one reward, in memory and, if one is given, in a file that runs and rewards may share.

    A file that fails later (a full disk, a lock that is not released, damage) is reported once and not used again: the
    cache is an aid, and the run continues without it.
    """

    def __init__(self, reward: str, args: Mapping[str, object], file: str | Path | None = None, *, code: object = None):
        """code: identifies this reward's code, or its weights behind the same arguments."""
        self._salt = _digest(reward, args, _files(args), code)
        self._known: OrderedDict[bytes, Value] = OrderedDict()
        self._lock = threading.Lock()  # a reward is called by one thread at a time, but not always by the same
        self._path = None if file is None else Path(file).expanduser()
        self._file = None if self._path is None else _open(self._path)

    def __call__(self, score: Callable[[Samples], Tensor], samples: Samples) -> CachedScores:
        """The scores; unknown ones are computed by `score`, which returns float32 [B] and sees each sample once."""
        values, new = self._looked_up(lambda some: score(some).tolist(), samples)
        return CachedScores(torch.tensor(values, dtype=torch.float32), new)

    def of_steps(
        self, score: Callable[[Samples], CachedScores], samples: Samples, total: Callable[[Steps], float]
    ) -> CachedScores:
        """The same of a reward that gives values of steps, which are what is kept; total: the score that they make."""

        def ask(some: Samples) -> list[Value]:
            found = score(some)
            given = zip(found.scores.tolist(), found.steps or (), strict=True)
            return [math.nan if math.isnan(value) else steps for value, steps in given]

        values, new = self._looked_up(ask, samples)
        steps: list[Steps] = [value if isinstance(value, tuple) else () for value in values]
        totals = [total(value) if isinstance(value, tuple) else value for value in values]
        return CachedScores(torch.tensor(totals, dtype=torch.float64).float(), new, steps)

    def _looked_up(
        self, ask: Callable[[Samples], Sequence[Value]], samples: Samples
    ) -> tuple[list[Value], dict[bytes, Value]]:
        """What is known of each sample, and what of it is new; unknown samples are asked about once each."""
        keys = [self._key(samples, i) for i in range(len(samples))]
        known = [self._get(key) for key in keys]
        first = {key: i for i, key in reversed(list(enumerate(keys))) if known[i] is None}
        missing = sorted(first.values())
        new: dict[bytes, Value] = {}
        if missing:
            found = ask(samples if len(missing) == len(keys) else samples[missing])
            new = dict(zip((keys[i] for i in missing), found, strict=True))
        return [new[key] if value is None else value for key, value in zip(keys, known, strict=True)], new

    def keep(self, scored: CachedScores) -> None:
        """Stores new scores once they count; samples that were refused or late are scored again next time."""
        pairs = [
            (key, value) for key, value in scored.new.items() if not isinstance(value, float) or math.isfinite(value)
        ]
        with self._lock:
            self._known.update(pairs)
            while len(self._known) > LARGEST:
                self._known.popitem(last=False)
            if self._file is not None:
                self._write(self._file, [(key, _packed(value)) for key, value in pairs])

    def _write(self, file: sqlite3.Connection, rows: list[tuple[bytes, bytes]]) -> None:
        try:
            with file:
                file.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: sqlite3.Error) -> None:
        """Continues in memory alone."""
        warnings.warn(
            f"cache: {str(self._path)!r} failed ({error}); from here on scores are kept in memory only", stacklevel=4
        )
        file, self._file = self._file, None
        with contextlib.suppress(sqlite3.Error):
            if file is not None:
                file.close()

    def _key(self, samples: Samples, i: int) -> bytes:
        prompt = samples.prompts[i]
        media = [_state(Path(path)) for path in prompt.media]
        about = _digest(
            prompt.text,
            prompt.media,
            media,
            prompt.meta,
            prompt.call,
            None if samples.texts is None else samples.texts[i],
        )
        digest = hashlib.sha256(self._salt + about)
        for pixels in (samples.images, samples.video, samples.audio):
            if pixels is not None:
                one = pixels[i].detach().cpu().contiguous()
                digest.update(f"{one.dtype}{tuple(one.shape)}".encode())
                digest.update(one.view(torch.uint8).numpy().tobytes())
        if samples.audio is not None:
            digest.update(f"{samples.sample_rate} a second".encode())
        for tensor in (samples.lengths, samples.truncated):
            if tensor is not None:
                digest.update(str(tensor[i].item()).encode())
        if samples.talks is not None:
            digest.update(samples.talks[i].written().encode())
        return digest.digest()

    def _get(self, key: bytes) -> Value | None:
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
            if self._file is None:
                return None
            try:
                row = self._file.execute("SELECT score FROM scores WHERE key = ?", (key,)).fetchone()
            except sqlite3.Error as error:
                self._give_up(error)
                return None
        return None if row is None else _unpacked(row[0])


def identity(reward: str, args: Mapping[str, JSON], code: JSON) -> str:
    """Identifies a reward with its files and code; hexadecimal."""
    return _digest(reward, args, _files(args), code).hex()


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).digest()


def _packed(value: Value) -> bytes:
    """A score as four bytes, or steps as a mark and 16 bytes each."""
    if isinstance(value, tuple):
        return STEPS + b"".join(struct.pack("<qd", end, worth) for end, worth in value)
    return struct.pack("<f", value)


def _unpacked(stored: object) -> Value | None:
    """What `_packed` wrote, None if it is damaged."""
    if isinstance(stored, bytes) and stored[:1] == STEPS and len(stored) % 16 == 1:
        steps = tuple(struct.iter_unpack("<qd", stored[1:]))
        return steps if all(math.isfinite(worth) for _, worth in steps) else None
    if not isinstance(stored, bytes) or len(stored) != 4:
        return None
    (value,) = struct.unpack("<f", stored)
    return value if math.isfinite(value) else None


def _files(args: object) -> list[tuple]:
    """The contents of the files that the arguments name, at any depth: another checkpoint gives other scores."""
    contents: list[tuple] = []
    for path in _paths(args):
        files = [path] if path.is_file() else sorted(path.rglob("*"))[:MOST_FILES]
        contents += [content for file in files if (content := _content(file)) is not None]
    return contents


def _paths(value: object) -> Iterator[Path]:
    """The files and folders named by strings in a value."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from _paths(one)
    elif isinstance(value, str | Path) and str(value):
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # a long text is not the name of a file
            if (path := Path(value).expanduser()).exists():
                yield path


def _content(file: Path) -> tuple | None:
    """Name and content hash of a file, or size and modification time of a large one; None if there is none."""
    if (state := _state(file)) is None or state[1] > LARGEST_READ:
        return state
    return file.name, hashlib.sha256(file.read_bytes()).hexdigest()


def _state(file: Path) -> tuple[str, int, int] | None:
    """Name, size and modification time of a file; None if there is none."""
    return (file.name, file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else None


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = sqlite3.connect(path, timeout=30, check_same_thread=False)
        file.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score BLOB NOT NULL) WITHOUT ROWID")
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"cache: {str(path)!r} is not a score cache ({error}); name another file") from error
    return file
