"""Where a run that is to be gone on with stands: its newest whole checkpoint, and what its recipe says otherwise."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowrl import state
from flowrl.names import UserError
from flowrl.recipe.changes import changes, refuse
from flowrl.recipe.load import written
from flowrl.recipe.schema import Recipe


@dataclass(frozen=True)
class Point:
    """Where to go on from. checkpoint None: from the beginning. summary: of a run that has nothing left to do."""

    checkpoint: state.Checkpoint | None = None
    changed: dict[str, list[Any]] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    summary: dict[str, Any] | None = None

    @property
    def iteration(self) -> int:
        """Iterations that are done."""
        return 0 if self.checkpoint is None else self.checkpoint.iteration


def find(folder: Path, recipe: Recipe) -> Point:
    """The point at which the run in `folder` goes on under `recipe`.

    Raises RecipeError where it cannot go on under this recipe, UserError where there is no run.
    """
    file = folder / "recipe.yaml"
    if not file.is_file():
        raise UserError(f"resume: {folder} holds no run (no recipe.yaml); name a run's folder, or leave --resume out")
    changed = changes(written(file), recipe)
    checkpoint, damaged = state.Checkpoints(folder).newest()
    done = 0 if checkpoint is None else checkpoint.iteration
    if checkpoint is not None:
        refuse(changed, recipe, done)
    summary = _summary(folder)
    ended = summary is not None and summary.get("rolled_back") is not None and not changed
    if summary is not None and not ended and not _is_over(recipe, done, summary):
        summary = None
    instead = f"going on from {checkpoint.path}" if checkpoint else "beginning again"
    complaints = [f"{line}; {instead}" for line in damaged]
    if checkpoint is None and not damaged:
        complaints = [f"{folder} has no checkpoint yet; beginning again"]
    return Point(checkpoint, changed, complaints, summary)


def fill(parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor], checkpoint: state.Checkpoint) -> None:
    """Copies saved tensors into the parameters of the same names. Raises StateError where the two do not fit."""
    differ = [n for n in {**parameters, **saved} if n not in saved or n not in parameters]
    differ += [n for n in parameters if n in saved and parameters[n].shape != saved[n].shape]
    if differ:
        raise state.StateError(
            f"checkpoint {checkpoint.path} does not fit the model: {differ[0]} and {len(differ) - 1} more differ; "
            "resume with the recipe it was written under"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])


def _is_over(recipe: Recipe, done: int, summary: Mapping[str, Any]) -> bool:
    """Whether a run that has done so many iterations, and was summed up, has nothing left to do under the recipe."""
    seconds = recipe.train.seconds
    in_time = summary.get("iterations") == done and seconds is not None and summary.get("spent", 0.0) >= seconds
    return done == recipe.train.iterations or in_time


def _summary(folder: Path) -> dict[str, Any] | None:
    file = folder / "summary.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def restore_weights(parameters: Mapping[str, Tensor], run: Path, which: str, *, raw: bool = False) -> int:
    """Copies the trained weights of a run's checkpoint (`last`, `best` or a number) into the parameters; its iteration.

    raw: the weights as they were trained, not their moving average. Raises StateError where there is no such whole
    checkpoint, or it belongs to another model.
    """
    checkpoint = state.Checkpoints(run).find(which)
    saved = state.load(checkpoint)
    average = saved["learner"]["average"]
    trained: dict[str, Tensor] = saved["parameters"]
    if average is not None and not raw:
        trained = dict(zip(trained, average, strict=True))
    fill(parameters, trained, checkpoint)
    return checkpoint.iteration
