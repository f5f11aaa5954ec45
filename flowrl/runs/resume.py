"""Where a run resumes: its newest intact checkpoint, and the changes to its recipe."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from flowrl.contracts import Prompt
from flowrl.core.learning.learner import AVERAGE, saved_copies
from flowrl.names import UserError
from flowrl.recipe.changes import changes, refuse_changes
from flowrl.recipe.load import load_unchecked
from flowrl.recipe.schema import Recipe
from flowrl.runs import checkpoints
from flowrl.untyped import JSON


@dataclass(frozen=True)
class ResumePoint:
    """Where a run resumes. checkpoint: None to start from the beginning. summary: of a run that is already finished."""

    checkpoint: checkpoints.Checkpoint | None = None
    changed: dict[str, list[JSON]] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    summary: dict[str, JSON] | None = None

    @property
    def iteration(self) -> int:
        """The number of iterations done."""
        return 0 if self.checkpoint is None else self.checkpoint.iteration


def find_resume_point(folder: Path, recipe: Recipe) -> ResumePoint:
    """The point at which the run in `folder` resumes under `recipe`.

    Raises RecipeError if it cannot resume under this recipe, UserError if there is no run.
    """
    file = folder / "recipe.yaml"
    if not file.is_file():
        raise UserError(f"resume: {folder} holds no run (no recipe.yaml); name a run's folder, or leave --resume out")
    changed = changes(load_unchecked(file), recipe)
    checkpoint, damaged = checkpoints.Checkpoints(folder).newest()
    done = 0 if checkpoint is None else checkpoint.iteration
    if checkpoint is not None:
        refuse_changes(changed, recipe, done)
    summary = _read_object(folder / "summary.json") or None
    ended = summary is not None and summary.get("rolled_back") is not None and not changed
    if summary is not None and not ended and not _is_over(recipe, done, summary):
        summary = None
    instead = f"resuming from {checkpoint.path}" if checkpoint else "starting over"
    complaints = [f"{line}; {instead}" for line in damaged]
    if checkpoint is None and not damaged:
        complaints = [f"{folder} has no checkpoint yet; starting over"]
    starts = _read_object(folder / "run.json").get("starts")
    if isinstance(starts, list) and starts and not (isinstance(starts[-1], dict) and "ended" in starts[-1]):
        complaints.append(f"{folder} has no record of how the run ended: it was killed, or its code ended the process")
    return ResumePoint(checkpoint, changed, complaints, summary)


def all_prompts(train: list[Prompt], by_phase: list[list[Prompt]]) -> list[Prompt]:
    """The training prompts of a run and of its phases, each list once."""
    others = [prompts for prompts in by_phase if prompts is not train]
    return [*train, *(prompt for prompts in others for prompt in prompts)]


def refuse_other_prompts(point: ResumePoint, train: Iterable[Prompt], heldout: Iterable[Prompt]) -> None:
    """Raises UserError if the prompts differ from those the run has trained or been evaluated on so far."""
    if point.checkpoint is None:
        return
    mark = checkpoints.load(point.checkpoint, "mark")
    now = prompt_digests(train, heldout)
    for name in ("train", "heldout") if mark["evaluated"] else ("train",):
        if mark["prompts"][name] != now[name]:
            keys = "prompts.train or prompts.limit" if name == "train" else "prompts.heldout or eval.prompts"
            raise UserError(
                f"prompts.{name}: differ from the prompts this run began with (in ids, texts, media or meta); restore "
                f"them ({keys}), or start a new run without --resume"
            )


def prompt_digests(train: Iterable[Prompt], heldout: Iterable[Prompt]) -> dict[str, str]:
    """Digests of the prompts of training and of evaluations, with the names of files but not their folders."""
    return {"train": _digest(train), "heldout": _digest(heldout)}


def _digest(prompts: Iterable[Prompt]) -> str:
    whole = hashlib.sha256()
    for prompt in prompts:
        meta = dict(dict.items(prompt.meta))  # bypass columns.Meta, which counts reads
        record = [prompt.id, prompt.text, [Path(m).name for m in prompt.media], meta, prompt.call]
        whole.update(json.dumps(record, sort_keys=True, default=_plain_text).encode())
    return whole.hexdigest()


def _plain_text(value: JSON) -> str:
    return value.name if isinstance(value, Path) else repr(value)


def fill_parameters(
    parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor], checkpoint: checkpoints.Checkpoint
) -> None:
    """Copies saved tensors into the parameters of the same names. Raises StateError if names or shapes differ."""
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


def _is_over(recipe: Recipe, done: int, summary: Mapping[str, JSON]) -> bool:
    """Whether a run with `done` iterations and this summary has nothing left to do under the recipe."""
    seconds = recipe.train.seconds
    in_time = summary.get("iterations") == done and seconds is not None and summary.get("spent", 0.0) >= seconds
    return done == recipe.train.iterations or in_time


def _read_object(file: Path) -> dict[str, JSON]:
    """The mapping in a JSON file; empty if it is missing or damaged, as only checkpoints are essential."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def restore_weights(parameters: Mapping[str, Tensor], run: Path, which: str, *, raw: bool = False) -> int:
    """Copies a checkpoint's trained weights (`last`, `best` or a number) into the parameters; returns its iteration.

    raw: the trained weights instead of their moving average. Raises StateError if there is no such intact checkpoint,
    or it belongs to another model.
    """
    checkpoint = checkpoints.Checkpoints(run).find(which)
    saved = checkpoints.load(checkpoint)
    average = saved_copies(saved["learner"]).get(AVERAGE)
    trained: dict[str, Tensor] = saved["parameters"]
    if average is not None and not raw:
        trained = dict(zip(trained, average, strict=True))
    fill_parameters(parameters, trained, checkpoint)
    return checkpoint.iteration
