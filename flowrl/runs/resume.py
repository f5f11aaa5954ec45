"""Where a run that is to be gone on with stands: its newest whole checkpoint, and what its recipe says otherwise."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import Prompt
from flowrl.core.learner import AVERAGE, saved_copies
from flowrl.names import UserError
from flowrl.recipe.changes import changes, refuse
from flowrl.recipe.load import written
from flowrl.recipe.schema import Recipe
from flowrl.runs import checkpoints


@dataclass(frozen=True)
class Point:
    """Where to go on from. checkpoint None: from the beginning. summary: of a run that has nothing left to do."""

    checkpoint: checkpoints.Checkpoint | None = None
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
    checkpoint, damaged = checkpoints.Checkpoints(folder).newest()
    done = 0 if checkpoint is None else checkpoint.iteration
    if checkpoint is not None:
        refuse(changed, recipe, done)
    summary = _object(folder / "summary.json") or None
    ended = summary is not None and summary.get("rolled_back") is not None and not changed
    if summary is not None and not ended and not _is_over(recipe, done, summary):
        summary = None
    instead = f"going on from {checkpoint.path}" if checkpoint else "beginning again"
    complaints = [f"{line}; {instead}" for line in damaged]
    if checkpoint is None and not damaged:
        complaints = [f"{folder} has no checkpoint yet; beginning again"]
    starts = _object(folder / "run.json").get("starts")
    if isinstance(starts, list) and starts and not (isinstance(starts[-1], dict) and "ended" in starts[-1]):
        complaints.append(f"{folder} did not say how it ended: it was killed, or code within it left the process")
    return Point(checkpoint, changed, complaints, summary)


def refuse_others(point: Point, train: Iterable[Prompt], heldout: Iterable[Prompt]) -> None:
    """Raises UserError where a run would go on with other prompts than it has drawn, or been evaluated on, so far."""
    if point.checkpoint is None:
        return
    mark = checkpoints.load(point.checkpoint, "mark")
    now = digests(train, heldout)
    for name in ("train", "heldout") if mark["evaluated"] else ("train",):
        if mark["prompts"][name] != now[name]:
            keys = "prompts.train or prompts.limit" if name == "train" else "prompts.heldout or eval.prompts"
            raise UserError(
                f"prompts.{name}: not the prompts this run began with (ids, texts, media and meta count); restore them "
                f"({keys}), or start a new run without --resume"
            )


def digests(train: Iterable[Prompt], heldout: Iterable[Prompt]) -> dict[str, str]:
    """A digest of all that is asked in training, and in evaluations: names of files count, not their folders."""
    return {"train": _digest(train), "heldout": _digest(heldout)}


def _digest(prompts: Iterable[Prompt]) -> str:
    whole = hashlib.sha256()
    for prompt in prompts:
        meta = dict(dict.items(prompt.meta))  # past columns.Meta, which counts reads: a digest is none
        said = [prompt.id, prompt.text, [Path(m).name for m in prompt.media], meta, prompt.call]
        whole.update(json.dumps(said, sort_keys=True, default=_plain).encode())
    return whole.hexdigest()


def _plain(value: Any) -> str:
    return value.name if isinstance(value, Path) else repr(value)


def fill(parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor], checkpoint: checkpoints.Checkpoint) -> None:
    """Copies saved tensors into the parameters of the same names. Raises StateError where the two do not fit."""
    differ = [n for n in {**parameters, **saved} if n not in saved or n not in parameters]
    differ += [n for n in parameters if n in saved and parameters[n].shape != saved[n].shape]
    if differ:
        raise checkpoints.StateError(
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


def _object(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty where it is damaged or not there: a whole checkpoint is all that counts."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def restore_weights(parameters: Mapping[str, Tensor], run: Path, which: str, *, raw: bool = False) -> int:
    """Copies the trained weights of a run's checkpoint (`last`, `best` or a number) into the parameters; its iteration.

    raw: the weights as they were trained, not their moving average. Raises StateError where there is no such whole
    checkpoint, or it belongs to another model.
    """
    checkpoint = checkpoints.Checkpoints(run).find(which)
    saved = checkpoints.load(checkpoint)
    average = saved_copies(saved["learner"]).get(AVERAGE)
    trained: dict[str, Tensor] = saved["parameters"]
    if average is not None and not raw:
        trained = dict(zip(trained, average, strict=True))
    fill(parameters, trained, checkpoint)
    return checkpoint.iteration
