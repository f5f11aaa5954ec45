"""The folder of a run: its recipe, metrics, samples and weights, written during the run.

recipe.yaml        every effective value
run.json           versions, machine, and every start and resume with how it ended
metrics.jsonl      one line per iteration ("kind": "train") and per evaluation ("heldout")
alarms.jsonl       one line per alarm
heldout/           NNNNN.json for each evaluation: prompts, their scores, the first samples (NNNNN/*.png or texts),
                   and of these what conversations were shown, and the prompts' own files (media/*.png)
samples/           the same pictures as grids, with the same seeds
tensorboard/       the same numbers and grids
checkpoints/       what a resume needs (state.py)
lora/ or model/    what was trained
summary.json       before and after
report.html        all of it on one page
"""

import contextlib
import glob
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import filelock
import torch
from torch.utils.tensorboard import SummaryWriter

from flowrl.contracts import Prompt
from flowrl.core.evaluation import Evaluation
from flowrl.media.pictures import save_grid, save_picture
from flowrl.media.sounds import save_sound
from flowrl.names import UserError
from flowrl.report import page
from flowrl.runs import seen
from flowrl.runs.machine import machine_facts
from flowrl.runs.tracking import Tracking
from flowrl.untyped import JSON


def unused_folder(folder: Path) -> Path:
    """The folder, or if it is not empty, the first of folder-2, folder-3 ... that is."""
    candidate, number = folder, 1
    while candidate.exists() and (not candidate.is_dir() or any(candidate.iterdir())):
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def newest_run(folder: Path) -> Path | None:
    """The run that `fresh` made last under this name: the highest of folder, folder-2 ... with a recipe in it."""
    runs = [folder] if (folder / "recipe.yaml").is_file() else []
    numbered = (p for p in folder.parent.glob(f"{glob.escape(folder.name)}-*") if (p / "recipe.yaml").is_file())
    suffixes = ((p.name.removeprefix(f"{folder.name}-"), p) for p in numbered)
    runs += [p for _, p in sorted((int(s), p) for s, p in suffixes if s.isascii() and s.isdigit())]
    return runs[-1] if runs else None


class RunFolder:
    """A run's folder, locked by this process. Raises UserError if it cannot be written or another run has locked it.

    Call `rewind` before logging.
    """

    def __init__(self, folder: Path):
        self.path = folder
        try:
            (folder / "samples").mkdir(parents=True, exist_ok=True)
            (folder / "heldout").mkdir(exist_ok=True)
            self._lock = filelock.FileLock(folder / ".lock")
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            remedy = "wait for it, stop it, or name another folder with output=FOLDER"
            raise UserError(f"output: {folder} is being written by another run; {remedy}") from error
        except OSError as error:
            raise UserError(f"output: {folder} cannot be written ({error.strerror}); name another folder") from error
        self.tracking = Tracking()  # what a recipe's `track` adds to the files
        self._starts: list[dict[str, JSON]] = []
        self._metrics: Any = None
        self._board: Any = None

    def position(self) -> dict[str, int]:
        """The sizes of the growing files in bytes, for `rewind`."""
        self._metrics.flush()
        alarms = self.path / "alarms.jsonl"
        return {"metrics": self._metrics.tell(), "alarms": alarms.stat().st_size if alarms.exists() else 0}

    def sync(self) -> None:
        """Syncs the metrics so far to disk."""
        os.fsync(self._metrics.fileno())

    def rewind(self, position: Mapping[str, int], iteration: int, evaluated: Sequence[int]) -> None:
        """Truncates the growing files to what they were after `iteration` iterations, and opens them."""
        self.close_files()
        try:
            for name in ("metrics", "alarms"):
                path, size = self.path / f"{name}.jsonl", position.get(name, 0)
                if path.exists() and path.stat().st_size > size:
                    os.truncate(path, size)
            for path in (self.path / "heldout").glob("*.json"):
                if path.stem.isdigit() and int(path.stem) not in evaluated:
                    path.unlink()
            self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"output: {self.path} cannot be written ({error.strerror}); free it first") from error
        self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=iteration + 1 if iteration else None)

    def write(self, name: str, text: str) -> None:
        """Writes a text file of the run atomically."""
        aside = (self.path / name).with_suffix(".tmp")
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.path / name)

    def log(self, iteration: int, metrics: dict[str, float], *, kind: str = "train") -> None:
        """Writes one line of metrics.jsonl at once, and the same numbers for TensorBoard and the trackers."""
        clean = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._metrics.write(json.dumps({"iteration": iteration, "kind": kind, **clean}) + "\n")
        self._metrics.flush()
        for name, value in metrics.items():
            self._board.add_scalar(f"{kind}/{name}", value, iteration)
        self.tracking.log(iteration, {f"{kind}/{name}": value for name, value in metrics.items()})

    def alarm(self, record: Mapping[str, JSON]) -> None:
        """Writes one line of alarms.jsonl."""
        with (self.path / "alarms.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(record)) + "\n")

    def evaluated(self, iteration: int, name: str, result: Evaluation) -> None:
        """Writes the scores of all held-out prompts to heldout/, the first samples beside them and as grid `name`."""
        stem = f"{iteration:05d}"
        pictures: list[str] = []
        for i, picture in enumerate(result.pictures if result.pictures is not None else ()):
            path = self.path / "heldout" / stem / f"{i:03d}.png"
            save_picture(picture, path)
            pictures.append(path.relative_to(self.path).as_posix())
        sounds = self._save_sounds(stem, result)
        record = {
            "iteration": iteration,
            **result.record(),
            "pictures": pictures,
            **({"sounds": sounds} if sounds else {}),
            "texts": list(result.texts or ()),
            **seen.record(self.path, stem, result),
        }
        self.write(f"heldout/{stem}.json", json.dumps(record) + "\n")
        if result.pictures is not None:
            save_grid(result.pictures, self.path / "samples" / f"{name}.png")
            self._board.add_images("heldout", result.pictures, iteration)
            self.tracking.images(iteration, "heldout", result.pictures)
        for i, text in enumerate(result.texts or ()):
            self._board.add_text(f"heldout/{i:03d}", f"{result.prompts[i].text}\n\n{text}", iteration)

    def _save_sounds(self, stem: str, result: Evaluation) -> list[str]:
        """Writes the first sounds beside the first pictures; returns their paths in the folder."""
        paths: list[str] = []
        if result.sounds is not None and result.sample_rate is not None:
            for i, sound in enumerate(result.sounds):
                path = self.path / "heldout" / stem / f"{i:03d}.wav"
                save_sound(sound, result.sample_rate, path)
                paths.append(path.relative_to(self.path).as_posix())
        return paths

    def evaluation(self, iteration: int) -> Evaluation:
        """The scores of an earlier evaluation, without its samples. Raises UserError if its file is damaged."""
        path = self.path / "heldout" / f"{iteration:05d}.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            prompts = [
                Prompt(p["id"], p["text"], meta={} if p["kind"] is None else {"kind": p["kind"]})
                for p in record["prompts"]
            ]
            scores = {name: _tensor(values) for name, values in record["scores"].items()}
            total = _tensor(record["total"]) if "total" in record else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path}: cannot be read ({type(error).__name__})") from error
        return Evaluation(prompts, scores, None, total=total)

    def earlier(self, iterations: Sequence[int], tell: Callable[[str], None]) -> dict[int, Evaluation]:
        """The evaluations that can be read; `tell` gets a line for each other one.

        Of such a one, reports have no scores, and the watch has no pairs.
        """
        evaluations = {}
        for iteration in iterations:
            try:
                evaluations[iteration] = self.evaluation(iteration)
            except UserError as error:
                tell(f"{error}; continuing without it")
        return evaluations

    def begun(self, iteration: int, changed: Mapping[str, list[JSON]]) -> None:
        """Records in run.json that the run starts now from this iteration, with these changes to its recipe."""
        self._starts = [*self._earlier(), {"time": _now(), "from_iteration": iteration, "changed": dict(changed)}]
        self._write_starts()

    def ended(self, how: str) -> None:
        """Records in run.json how the current start ended. A start without such a record was killed."""
        if self._starts:
            self._starts[-1] |= {"ended": how, "at": _now()}
            self._write_starts()

    def _write_starts(self) -> None:
        self.write("run.json", json.dumps(machine_facts() | {"starts": self._starts}, indent=2) + "\n")

    def _earlier(self) -> list[dict[str, JSON]]:
        """The earlier starts, if they can be read."""
        try:
            starts = json.loads((self.path / "run.json").read_text(encoding="utf-8"))["starts"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return []
        return [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []

    def report(self) -> None:
        """Writes report.html of what is in the folder."""
        page.write(self.path)

    def summary(self, values: dict[str, JSON]) -> None:
        """Writes summary.json."""
        self.write("summary.json", json.dumps(values, indent=2) + "\n")

    def close_files(self) -> None:
        """Flushes and closes the growing files."""
        for file in (self._metrics, self._board):
            if file is not None:
                with contextlib.suppress(ValueError, OSError):  # a full disk was already reported
                    file.close()

    def close(self) -> None:
        """Closes the files, ends the trackers' runs and unlocks the folder."""
        self.close_files()
        self.tracking.finish()
        self._lock.release()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _tensor(values: list[float | None]) -> torch.Tensor:
    """Scores float32 [n] as they were written, with None as NaN."""
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float32)
