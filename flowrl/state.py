"""Checkpoints: everything that a resume needs, written aside and renamed, so that one is either whole or not there.

    checkpoints/00040/            the state after 40 iterations
        state.json                numbers, texts and the layout of the state; size and SHA-256 of the other files
        __0_0.distcp, .metadata   its tensors, as torch.distributed.checkpoint writes them
    checkpoints/best              the number of the checkpoint with the best held-out reward, which is never pruned
    checkpoints/witness           that of the best witness, where a run may have to return to it (watch.on_hack)

A state is any nesting of dicts, lists, numbers, texts and tensors. `.metadata` is a pickle: its digest is compared
before it is read, which tells damage but no malice, so resume only runs that you trust.
"""

import hashlib
import json
import os
import random
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from flowrl.names import UserError

RECORD = "state.json"
MARKS = ("best", "witness")  # checkpoints that are never pruned
_TENSOR = "tensor:"


class StateError(UserError):
    """A checkpoint that cannot be written or read, told in one line."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk and the number of iterations it was taken after."""

    path: Path
    iteration: int


class Checkpoints:
    """The checkpoints of a run folder; the last `keep` stay, and those that are marked (MARKS)."""

    def __init__(self, run: Path, keep: int = 2):
        self.folder, self.keep = run / "checkpoints", keep

    def save(self, iteration: int, state: Mapping[str, Any]) -> Checkpoint:
        """Writes a state. Raises StateError where it cannot; the checkpoints before it are untouched then."""
        final = self.folder / f"{iteration:05d}"
        aside = self.folder / f"{final.name}.tmp"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            _write(aside, iteration, state)
            if final.exists():
                shutil.rmtree(final)
            aside.rename(final)
            _sync(self.folder)
            self._prune()
        except (OSError, CheckpointException) as error:
            shutil.rmtree(aside, ignore_errors=True)
            free = shutil.disk_usage(self.folder if self.folder.is_dir() else self.folder.parent).free
            before = [c for c in self.all() if c.iteration != iteration]
            whole = f"{before[-1].path} is whole" if before else "there is none before it"
            raise StateError(
                f"checkpoint: {final} cannot be written ({reason(error)}; {free / 2**20:,.0f} MiB free); {whole}: make "
                "room and go on with --resume"
            ) from error
        return Checkpoint(final, iteration)

    def all(self) -> list[Checkpoint]:
        """All checkpoints that were renamed into place, oldest first."""
        found = self.folder.glob("*") if self.folder.is_dir() else ()
        return sorted(
            (Checkpoint(p, int(p.name)) for p in found if p.name.isdigit() and p.is_dir()), key=lambda c: c.iteration
        )

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """The newest whole checkpoint, and a line for each newer one that is damaged."""
        complaints = []
        for checkpoint in reversed(self.all()):
            problem = damage(checkpoint)
            if problem is None:
                return checkpoint, complaints
            complaints.append(f"{checkpoint.path} is damaged ({problem})")
        return None, complaints

    def find(self, which: str) -> Checkpoint:
        """The checkpoint `last`, a marked one, or of an iteration's number. Raises StateError where it is not there."""
        there = {str(c.iteration): c for c in self.all()}
        marked = {mark: str(self.marked(mark)) for mark in MARKS}
        names = {"last": there[max(there, key=int)]} if there else {}
        names |= {mark: there[number] for mark, number in marked.items() if number in there}
        key = str(int(which)) if which.isdigit() else which
        found = (there | names).get(key)
        if found is None:
            accepted = ", ".join([*names, *there]) or "nothing yet"
            raise StateError(f"checkpoint {which!r}: not in {self.folder}; accepted: {accepted}")
        if problem := damage(found):
            raise StateError(f"checkpoint {found.path}: {problem}; name another one")
        return found

    def mark(self, which: str, iteration: int) -> None:
        """Marks a checkpoint, such as the best so far, which keeps it and lets go of the one marked before."""
        aside = self.folder / f"{which}.tmp"
        aside.write_text(str(iteration))
        aside.replace(self.folder / which)
        self._prune()

    def marked(self, which: str) -> int | None:
        """The iteration of the checkpoint with this mark."""
        mark = self.folder / which
        text = mark.read_text().strip() if mark.is_file() else ""
        return int(text) if text.isdigit() else None

    def forget_after(self, iteration: int, marks: Mapping[str, int | None]) -> None:
        """Removes what a run that goes on from `iteration` has not done yet, and marks what it had marked by then."""
        for checkpoint in self.all():
            if checkpoint.iteration > iteration:
                shutil.rmtree(checkpoint.path)
        there = {checkpoint.iteration for checkpoint in self.all()}
        for which in MARKS:
            (self.folder / which).unlink(missing_ok=True)
            if marks.get(which) in there:
                (self.folder / which).write_text(str(marks[which]))  # all of them before any is pruned
        self._prune()

    def _prune(self) -> None:
        kept = {c.iteration for c in self.all()[-self.keep :]} | {self.marked(mark) for mark in MARKS}
        for checkpoint in self.all():
            if checkpoint.iteration not in kept:
                shutil.rmtree(checkpoint.path)


def load(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state as it was saved, tensors on the CPU."""
    record = json.loads((checkpoint.path / RECORD).read_text(encoding="utf-8"))
    reader = dcp.FileSystemReader(checkpoint.path)
    layout: Any = reader.read_metadata().state_dict_metadata
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in layout.items()}
    if tensors:
        _alone(dcp.load, tensors, storage_reader=reader)
    return _joined(record["state"], tensors)


def damage(checkpoint: Checkpoint) -> str | None:
    """What is wrong with the files of a checkpoint, in a few words; None where nothing is."""
    try:
        files = json.loads((checkpoint.path / RECORD).read_text(encoding="utf-8"))["files"]
        for name, (size, digest) in files.items():
            path = checkpoint.path / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes of {size}"
            if _digest(path) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{RECORD} cannot be read: {reason(error)}"
    return None


def random_state() -> dict[str, Any]:
    """The global generators of torch, numpy and Python. Nothing of a run's own draws from them; a reward may."""
    version, keys, position, has_gauss, gauss = numpy.random.get_state()  # pyright: ignore[reportGeneralTypeIssues]
    kind, inner, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [version, torch.from_numpy(numpy.asarray(keys).astype(numpy.int64)), position, has_gauss, gauss],
        "python": [kind, list(inner), gauss_next],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Sets the global generators back. Those of GPUs that are not there are left alone."""
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, keys, *rest = state["numpy"]
    numpy.random.set_state((version, keys.numpy().astype(numpy.uint32), *rest))
    kind, inner, gauss_next = state["python"]
    random.setstate((kind, tuple(inner), gauss_next))


def reason(error: BaseException) -> str:
    """The cause beneath an error of torch's checkpoint writer, in a few words."""
    failures = [failure for failure, _ in getattr(error, "failures", {}).values()]
    deepest = failures[0] if failures else error
    return getattr(deepest, "strerror", None) or f"{type(deepest).__name__}: {' '.join(str(deepest).split())[:100]}"


def _write(folder: Path, iteration: int, state: Mapping[str, Any]) -> None:
    tensors: dict[str, Tensor] = {}
    layout = _split(state, "", tensors)
    _alone(dcp.save, tensors, storage_writer=dcp.FileSystemWriter(folder))
    files = {p.name: [p.stat().st_size, _digest(p)] for p in sorted(folder.iterdir())}
    record = {"iteration": iteration, "files": files, "state": layout}
    with (folder / RECORD).open("w", encoding="utf-8") as file:
        json.dump(record, file, allow_nan=True)
        file.flush()
        os.fsync(file.fileno())
    _sync(folder)


def _alone(call: Any, *args: Any, **kwargs: Any) -> None:
    """Calls torch's reader or writer in this process alone, without its remark that it is so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        call(*args, **kwargs, no_dist=True)


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON, its tensors moved to `tensors` under their path. Keys that are no text become pairs."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach()
        return f"{_TENSOR}{path}"
    if isinstance(value, Mapping):
        parts = [[key, _split(item, f"{path}/{key}", tensors)] for key, item in value.items()]
        return {"dict": parts}
    if isinstance(value, list | tuple):
        return [_split(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, str):
        return f"text:{value}"
    if value is None or isinstance(value, bool | int | float):
        return value
    raise TypeError(f"{path}: a {type(value).__name__} has no place in a checkpoint")


def _joined(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_split`, tuples as lists."""
    if isinstance(value, str):
        kind, _, rest = value.partition(":")
        return tensors[rest] if f"{kind}:" == _TENSOR else rest
    if isinstance(value, dict):
        return {key: _joined(item, tensors) for key, item in value["dict"]}
    return [_joined(item, tensors) for item in value] if isinstance(value, list) else value


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(folder: Path) -> None:
    """Makes the names in a folder durable, where the system lets folders be opened."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
