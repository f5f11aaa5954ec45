"""The folder of a run: its recipe, metrics, pictures and weights, written as the run goes."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from flowrl.names import UserError
from flowrl.pictures import save_grid


def fresh(folder: Path) -> Path:
    """The folder, or where it holds a run already, the first of folder-2, folder-3 ... that does not."""
    candidate, number = folder, 1
    while candidate.exists() and (not candidate.is_dir() or any(candidate.iterdir())):
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


class RunFolder:
    """A new run folder. Raises UserError in one line where it cannot be written.

    recipe.yaml     every effective value
    metrics.jsonl   a line an iteration and an evaluation
    tensorboard/    the same, and the pictures
    samples/        grids of held-out samples, at equal seeds
    lora/ or model/ what was trained
    summary.json    before and after
    """

    def __init__(self, folder: Path):
        self.path = folder
        try:
            (folder / "samples").mkdir(parents=True)
            self._metrics: TextIO = (folder / "metrics.jsonl").open("w", encoding="utf-8")
        except OSError as error:
            raise UserError(f"output: {folder} cannot be written ({error.strerror}); name another folder") from error
        self._board = SummaryWriter(str(folder / "tensorboard"))

    def write(self, name: str, text: str) -> None:
        """A text file of the run."""
        (self.path / name).write_text(text, encoding="utf-8")

    def log(self, iteration: int, metrics: dict[str, float], *, kind: str = "train") -> None:
        """One line of metrics.jsonl, at once on disk, and the same numbers for TensorBoard."""
        clean = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._metrics.write(json.dumps({"iteration": iteration, "kind": kind, **clean}) + "\n")
        self._metrics.flush()
        for name, value in metrics.items():
            self._board.add_scalar(f"{kind}/{name}", value, iteration)

    def show(self, name: str, pictures: Tensor, iteration: int) -> Path:
        """A grid under samples/."""
        path = self.path / "samples" / f"{name}.png"
        save_grid(pictures, path)
        self._board.add_images("heldout", pictures, iteration)
        return path

    def summary(self, values: dict[str, Any]) -> None:
        """summary.json."""
        self.write("summary.json", json.dumps(values, indent=2) + "\n")

    def close(self) -> None:
        """Flushes and closes the files."""
        with contextlib.suppress(ValueError):
            self._metrics.close()
        self._board.close()
