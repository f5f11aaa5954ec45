"""Checkpoints: everything that a resume needs, written atomically, so that a checkpoint is either whole or absent.

    checkpoints/00040/            the state after 40 iterations
        state.json                numbers, texts and the layout of the state
        state.safetensors         its tensors
        shards/                   those that ranks share out, a file of each rank (engines/shard_files.py)
        state.sha256              a digest per file, as `sha256sum -c` reads them
    checkpoints/best              the number of the checkpoint with the best held-out reward, which is never pruned
    checkpoints/witness           that of the best witness, if a run may have to return to it (watch.on_hack)

A state is any nesting of dicts, lists, numbers, texts and tensors. Nothing is unpickled, so loading one cannot execute
code. A replacement is complete and on disk before the old checkpoint is moved aside (`.old`) and removed: whenever the
process is killed, one of the two exists and is found.
"""

import contextlib
import hashlib
import json
import random
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy
import torch
from safetensors import SafetensorError
from torch import Tensor

from flowrl.core.learning.shards import local
from flowrl.names import UserError
from flowrl.runs import checkpoint_files as files
from flowrl.runs.checkpoint_files import DIGESTS, RECORD, TENSORS
from flowrl.untyped import Nest

MARKS = ("best", "witness")  # checkpoints that are never pruned
_OLD, _GONE = ".old", ".gone"  # moved aside while its replacement is put in place; being removed


class StateError(UserError):
    """A checkpoint cannot be written or read."""


class Sharing(Protocol):
    """Ranks that hold parts of a state; see engines/sharding.py."""

    rank: int

    def write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Writes the parts of all ranks to a new folder; all call it. Raises OSError."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, and the number of iterations before it."""

    path: Path
    iteration: int


class Checkpoints:
    """The checkpoints of a run folder; the last `keep` and the marked ones (MARKS) are kept."""

    def __init__(self, run: Path, keep: int = 2):
        self.folder, self.keep = run / "checkpoints", keep

    def save(self, iteration: int, state: Mapping[str, Nest], ranks: Sharing | None = None) -> Checkpoint:
        """Writes a state. Raises StateError if it cannot; earlier checkpoints are untouched then.

        ranks: those that share out tensors of the state, each of which calls this and writes its parts.
        """
        final = self.folder / f"{iteration:05d}"
        aside = self.folder / f"{final.name}.tmp"
        leads = ranks is None or ranks.rank == 0
        try:
            if leads:
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
            if ranks is not None:
                ranks.write(aside / files.SHARDS, files.shards_of(state))
            if leads:
                files.write(aside, iteration, state)
                _replace(final, aside)
                self._prune()
        except (OSError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            free = shutil.disk_usage(self.folder if self.folder.is_dir() else self.folder.parent).free
            before = [c for c in self.all() if c.iteration != iteration]
            whole = f"{before[-1].path} is intact" if before else "there is no earlier one"
            raise StateError(
                f"checkpoint: {final} cannot be written ({error_reason(error)}; {free / 2**20:,.0f} MiB free); "
                f"{whole}: make room and continue with --resume"
            ) from error
        return Checkpoint(final, iteration)

    def all(self) -> list[Checkpoint]:
        """All checkpoints, oldest first, including those moved aside whose replacement is missing."""
        paths = list(self.folder.glob("*")) if self.folder.is_dir() else []
        folders = {p.name: p for p in paths if p.suffix == "" and p.is_dir()}
        folders = {p.stem: p for p in paths if p.suffix == _OLD} | folders
        numbers = ((number_of(name), path) for name, path in folders.items())
        return sorted((Checkpoint(p, n) for n, p in numbers if n is not None), key=lambda c: c.iteration)

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest intact checkpoint, and one line for each newer one that is damaged."""
        complaints = []
        for checkpoint in reversed(self.all()):
            problem = find_damage(checkpoint)
            if problem is None:
                return checkpoint, complaints
            complaints.append(f"{checkpoint.path} is damaged ({problem})")
        return None, complaints

    def find(self, which: str) -> Checkpoint:
        """The checkpoint named `last`, a mark, or the number of an iteration. Raises StateError if there is none."""
        by_number = {str(c.iteration): c for c in self.all()}
        marked = {mark: str(self.marked(mark)) for mark in MARKS}
        names = {"last": by_number[max(by_number, key=int)]} if by_number else {}
        names |= {mark: by_number[number] for mark, number in marked.items() if number in by_number}
        number = number_of(which)
        checkpoint = (by_number | names).get(which if number is None else str(number))
        if checkpoint is None:
            accepted = ", ".join([*names, *by_number]) or "nothing yet"
            raise StateError(f"checkpoint {which!r}: not in {self.folder}; accepted: {accepted}")
        if problem := find_damage(checkpoint):
            raise StateError(f"checkpoint {checkpoint.path}: {problem}; name another")
        return checkpoint

    def mark(self, which: str, iteration: int) -> None:
        """Marks a checkpoint, such as the best so far; it is kept, and the one marked before no longer is."""
        self._write_mark(which, iteration)
        self._prune()

    def marked(self, which: str) -> int | None:
        """The iteration of the checkpoint with this mark; None if there is none, or the mark is damaged."""
        mark = self.folder / which
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = mark.read_text(encoding="ascii")
            number = number_of(text.partition(" ")[0])
            return number if number is not None and text == _mark_text(which, number) else None
        return None

    def forget_after(self, iteration: int, marks: Mapping[str, int | None]) -> None:
        """Removes checkpoints after `iteration`, from which the run continues, and restores the marks of that time."""
        for checkpoint in self.all():
            if checkpoint.iteration > iteration:
                _remove(checkpoint.path)
        there = {checkpoint.iteration for checkpoint in self.all()}
        for which in MARKS:
            number = marks.get(which)
            if number is not None and number in there:
                self._write_mark(which, number)  # write all marks before anything is pruned
            else:
                (self.folder / which).unlink(missing_ok=True)
        self._prune()

    def _write_mark(self, which: str, iteration: int) -> None:
        aside = self.folder / f"{which}.tmp"
        files.write_durably(aside, _mark_text(which, iteration))
        aside.replace(self.folder / which)
        files.sync(self.folder)

    def _prune(self) -> None:
        """Removes all but the last and the marked ones, and leftovers of a killed process."""
        kept = {c.iteration for c in self.all()[-self.keep :]} | {self.marked(mark) for mark in MARKS}
        there = {c.path for c in self.all()}
        for checkpoint in self.all():
            if checkpoint.iteration not in kept:
                _remove(checkpoint.path)
        for path in self.folder.glob("*"):
            if path.suffix == _GONE or (path.suffix == _OLD and path not in there):
                shutil.rmtree(path, ignore_errors=True)


def load(checkpoint: Checkpoint, part: str | None = None, like: files.Like | None = None) -> dict[str, Nest]:
    """The saved state, or the part under one of its keys, with tensors on the CPU. like: see `checkpoint_files.read`.

    Raises StateError where not all of it is there."""
    try:
        return files.read(checkpoint.path, part, like)
    except ValueError as error:
        raise StateError(f"checkpoint {checkpoint.path}: {error}; name another") from error


def nonfinite_tensors(state: Nest, path: str = "") -> Iterator[str]:
    """The paths of the tensors in a state that hold a value that is not finite."""
    if isinstance(state, Tensor):
        if not torch.isfinite(local(state)).all():
            yield path
    elif isinstance(state, Mapping | list | tuple):
        parts = state.items() if isinstance(state, Mapping) else enumerate(state)
        for key, value in parts:
            yield from nonfinite_tensors(value, f"{path}/{key}" if path else str(key))


def find_damage(checkpoint: Checkpoint) -> str | None:
    """What is wrong with the files of a checkpoint, in a few words; None if they are intact."""
    path = checkpoint.path
    try:
        if (path / ".metadata").is_file() and not (path / DIGESTS).is_file():
            return "an earlier flowrl wrote it as a pickle, which is no longer read: start a new run"
        if missing := [name for name in (DIGESTS, RECORD, TENSORS) if not (path / name).is_file()]:
            return f"{missing[0]} is missing"
        lines = (path / DIGESTS).read_bytes().splitlines(keepends=True)
        named = [line.decode().rstrip("\n").partition("  ")[2] for line in lines]
        if missing := [name for name in named if not (path / name).is_file()]:
            return f"{missing[0]} is missing"
        for name, line in zip(files.names(path), files.digests(path), strict=True):
            if line.encode() not in lines:
                return f"{name} was changed after it was written"
        if len(lines) != len(files.names(path)):
            return f"{DIGESTS} was changed after it was written"
        number = json.loads((path / RECORD).read_text(encoding="utf-8"))["iteration"]
        return None if number == checkpoint.iteration else f"it is that of iteration {number}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read: {error_reason(error)}"


def number_of(name: str) -> int | None:
    """The iteration that a name of digits denotes, else None."""
    return int(name) if name.isascii() and name.isdigit() and len(name) < 20 else None


def random_state() -> dict[str, Nest]:
    """The states of the global generators of torch, numpy and Python, which user code such as a reward may use."""
    version, keys, position, has_gauss, gauss = numpy.random.get_state()  # pyright: ignore[reportGeneralTypeIssues]
    kind, inner, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [version, torch.from_numpy(numpy.asarray(keys).astype(numpy.int64)), position, has_gauss, gauss],
        "python": [kind, list(inner), gauss_next],
    }


def restore_random_state(state: Mapping[str, Nest]) -> None:
    """Restores the global generators; those of GPUs only if there are as many as before."""
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, keys, *rest = state["numpy"]
    numpy.random.set_state((version, keys.numpy().astype(numpy.uint32), *rest))
    kind, inner, gauss_next = state["python"]
    random.setstate((kind, tuple(inner), gauss_next))


def error_reason(error: BaseException) -> str:
    """The cause of an error, in a few words."""
    return getattr(error, "strerror", None) or f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"


def _replace(final: Path, aside: Path) -> None:
    """Renames `aside` to `final`; an existing `final` is moved aside first and removed last."""
    old = final.with_name(f"{final.name}{_OLD}")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    aside.rename(final)
    files.sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _remove(path: Path) -> None:
    """Removes a checkpoint; it is renamed first, so that a half removed one is not taken for a checkpoint."""
    gone = path.with_name(f"{path.stem}{_GONE}")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone)


def _mark_text(which: str, iteration: int) -> str:
    """The text of a mark's file: the number, and a digest that reveals damage."""
    return f"{iteration} {hashlib.sha256(f'{which} {iteration}'.encode()).hexdigest()[:16]}\n"
