"""What a run's folder holds, as far as it is there and whole.

A killed run leaves half a line, one under way has no summary yet, an old one no run.json: what cannot be read is left
out and named in `RunData.notes`.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flowrl.names import UserError
from flowrl.recipe import scalars

Points = list[tuple[int, float | None]]


@dataclass(frozen=True)
class Evaluated:
    """A file of heldout/: what was asked, the score of each answer, and the first answers (pictures or texts)."""

    iteration: int
    prompts: list[dict[str, str | None]]  # id, text, kind
    scores: dict[str, list[float | None]]
    pictures: list[str]  # paths, relative to the run
    texts: list[str]
    sounds: tuple[str, ...] = ()  # paths too


@dataclass(frozen=True)
class RunData:
    """A run's folder in memory. train and heldout: the lines of metrics.jsonl in order of iteration."""

    folder: Path
    recipe: dict[str, Any]
    recipe_text: str
    run: dict[str, Any]
    train: list[dict[str, Any]]
    heldout: list[dict[str, Any]]
    evaluations: list[Evaluated]
    alarms: list[dict[str, Any]]
    summary: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def points(self, metric: str, kind: str = "train") -> Points:
        """(iteration, value or None where it was not finite) of each line that has the metric."""
        rows = self.train if kind == "train" else self.heldout
        return [(row["iteration"], number(row[metric])) for row in rows if metric in row]

    def names(self, kind: str = "train") -> list[str]:
        """The metrics of a kind, in the order in which they first appear."""
        rows = self.train if kind == "train" else self.heldout
        return [n for n in dict.fromkeys(n for row in rows for n in row) if n not in ("iteration", "kind")]

    @property
    def weights(self) -> dict[str, float]:
        """The recipe's rewards and their weights; 0 marks a witness."""
        specs = mapping(self.recipe.get("rewards"))
        return {str(n): number(mapping(s).get("weight", 1.0)) or 0.0 for n, s in specs.items()}

    @property
    def rewards(self) -> list[str]:
        """Every reward that was measured or asked for, the trained ones first."""
        held = [n.removesuffix("/mean") for n in self.names("heldout") if _is_reward(n)]
        seen = [n.split("/")[1] for n in self.names() if n.startswith("reward/") and n.count("/") == 2]
        found = dict.fromkeys([*self.weights, *held, *seen])
        found.pop("total", None)  # of several trained rewards: see evaluations.total
        return sorted(found, key=lambda name: self.weights.get(name, 1.0) == 0)

    @property
    def last(self) -> int:
        """The last iteration that anything was written of."""
        written = [row["iteration"] for row in self.train + self.heldout]
        return max(written or [e.iteration for e in self.evaluations], default=0)

    @property
    def planned(self) -> int | None:
        """How many iterations the recipe asks for."""
        value = mapping(self.recipe.get("train")).get("iterations")
        return value if isinstance(value, int) else None

    @property
    def finished(self) -> bool:
        """Whether the run came to the end that its recipe asks for, be it that of `watch.on_hack`."""
        if self.rolled_back:
            return True
        limit, spent = number(mapping(self.recipe.get("train")).get("seconds")), number(self.summary.get("spent"))
        in_time = limit is not None and (spent or 0.0) >= limit
        wanted = self.last if in_time else max(self.last, self.planned or 0)
        return bool(self.summary) and (number(self.summary.get("iterations")) or 0) >= wanted

    @property
    def rolled_back(self) -> dict[str, Any]:
        """Of a run that an alarm ended with the weights of an earlier iteration: alarm, at, to, what; else empty."""
        found = mapping(self.summary.get("rolled_back"))
        return found if {"alarm", "at", "to"} <= set(found) else {}

    @property
    def seconds(self) -> float:
        """How long it took: as the summary says, else the phases that were timed."""
        told = number(self.summary.get("seconds"))
        timed = [number(v) or 0 for row in self.train + self.heldout for n, v in row.items() if n.startswith("time_")]
        return told if told is not None and self.finished else sum(timed)

    @property
    def resumes(self) -> list[dict[str, Any]]:
        """The starts of run.json but the first."""
        return [s for s in sequence(self.run.get("starts")) if isinstance(s, dict)][1:]


def read(folder: Path) -> RunData:
    """All that a run's folder holds. Raises UserError where it is no run's."""
    if not any((folder / name).is_file() for name in ("recipe.yaml", "metrics.jsonl")):
        found = "no recipe.yaml and no metrics.jsonl in it" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {found}, accepted: the folder of a run; name one that `flowrl run` has written")
    notes: list[str] = []
    recipe_text = _text(folder / "recipe.yaml", notes)
    rows = _lines(folder / "metrics.jsonl", notes)
    evaluations = [_evaluated(path, notes) for path in sorted((folder / "heldout").glob("*.json"))]
    return RunData(
        folder=folder,
        recipe=_recipe(recipe_text, notes),
        recipe_text=recipe_text,
        run=_object(folder / "run.json", notes),
        train=_by_iteration(rows, "train"),
        heldout=_by_iteration(rows, "heldout"),
        evaluations=_current(evaluations, rows),
        alarms=_lines(folder / "alarms.jsonl", notes),
        summary=_object(folder / "summary.json", notes),
        notes=notes,
    )


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def mapping(value: Any) -> dict[str, Any]:
    """A mapping as it is, anything else as an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """A list as it is, anything else as an empty one."""
    return value if isinstance(value, list) else []


def _is_reward(metric: str) -> bool:
    return metric.endswith("/mean") and not metric.startswith("samples/")


def _by_iteration(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The last line of each iteration."""
    found = {row["iteration"]: row for row in rows if row.get("kind") == kind}
    return [found[i] for i in sorted(found)]


def _current(evaluations: list[Evaluated | None], rows: list[dict[str, Any]]) -> list[Evaluated]:
    """In order of iteration, without those later than all metrics: what a resume has cut off, it will do again."""
    last = max((row["iteration"] for row in rows), default=math.inf)
    return sorted((e for e in evaluations if e is not None and e.iteration <= last), key=lambda e: e.iteration)


def _text(path: Path, notes: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        notes.append(f"{path.name} could not be read ({error.strerror})")
        return ""


def _lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The objects of a .jsonl file that have a whole iteration; a last line without its end is a run's death."""
    text, found, damaged = _text(path, notes), [], 0
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # brackets by the thousand
            row = None
        if isinstance(row, dict) and type(row.get("iteration")) is int:
            found.append(row)
        elif line.strip():
            damaged += 1
    if damaged:
        cut = text and not text.endswith("\n") and damaged == 1
        what = "the last line was" if cut else "one line was" if damaged == 1 else f"{damaged} lines were"
        notes.append(f"{path.name}: {what} not whole and left out")
    return found


def _object(path: Path, notes: list[str]) -> dict[str, Any]:
    text = _text(path, notes)
    try:
        return mapping(json.loads(text)) if text.strip() else {}
    except (ValueError, RecursionError):
        notes.append(f"{path.name} is no JSON and was left out")
        return {}


def _recipe(text: str, notes: list[str]) -> dict[str, Any]:
    try:
        return mapping(scalars.read(text))  # bounded in levels and values, whoever wrote it
    except yaml.YAMLError:
        notes.append("recipe.yaml is no YAML of a recipe; what it says of rewards and lengths is unknown")
        return {}


def _evaluated(path: Path, notes: list[str]) -> Evaluated | None:
    values = _object(path, notes)
    if type(values.get("iteration")) is not int:
        return None
    prompts = [
        {key: None if mapping(p).get(key) is None else str(p[key]) for key in ("id", "text", "kind")}
        for p in sequence(values.get("prompts"))
    ]
    scores = {str(n): [number(v) for v in sequence(s)] for n, s in mapping(values.get("scores")).items()}
    if "total" in values:
        scores["total"] = [number(v) for v in sequence(values["total"])]
    pictures = [str(p) for p in sequence(values.get("pictures"))]
    texts = [str(t) for t in sequence(values.get("texts"))]
    sounds = tuple(str(p) for p in sequence(values.get("sounds")))
    return Evaluated(values["iteration"], prompts, scores, pictures, texts, sounds)
