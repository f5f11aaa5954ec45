"""Reads a run's folder, as far as its files are present and intact.

A killed run leaves half a line, a running one has no summary yet, an old one has no run.json: what cannot be read is
left out and named in `RunData.notes`.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from flowrl.names import UserError
from flowrl.recipe import scalars
from flowrl.timing import phases
from flowrl.untyped import JSON

JsonObject = dict[str, JSON]
Points = list[tuple[int, float | None]]


@dataclass(frozen=True)
class EvaluationRecord:
    """A file of heldout/: the prompts, the scores of each sample, and the first samples (pictures or texts).

    media: of their prompts the files, kind, name and path where it is kept. talks: of those that are conversations the
    parts, each a text and the paths of pictures, None where there is none.
    """

    iteration: int
    prompts: list[dict[str, str | None]]  # id, text, kind
    scores: dict[str, list[float | None]]
    pictures: list[str]  # paths, relative to the run
    texts: list[str]
    sounds: tuple[str, ...] = ()  # paths too
    media: tuple[list[dict[str, str]], ...] = ()
    talks: tuple[list[tuple[str, list[str | None]]], ...] = ()


@dataclass(frozen=True)
class RunData:
    """A run's folder in memory. train and heldout: the lines of metrics.jsonl in order of iteration."""

    folder: Path
    recipe: JsonObject
    recipe_text: str
    run: JsonObject
    train: list[JsonObject]
    heldout: list[JsonObject]
    evaluations: list[EvaluationRecord]
    alarms: list[JsonObject]
    summary: JsonObject
    notes: list[str] = field(default_factory=list)

    def points(self, metric: str, kind: str = "train") -> Points:
        """(iteration, value or None where it was not finite) of each line that has the metric."""
        rows = self.train if kind == "train" else self.heldout
        return [(row["iteration"], finite_or_none(row[metric])) for row in rows if metric in row]

    def names(self, kind: str = "train") -> list[str]:
        """The metrics of a kind, in the order in which they first appear."""
        rows = self.train if kind == "train" else self.heldout
        return [n for n in dict.fromkeys(n for row in rows for n in row) if n not in ("iteration", "kind")]

    @property
    def weights(self) -> dict[str, float]:
        """The recipe's rewards and their weights; 0 marks a witness."""
        specs = dict_or_empty(self.recipe.get("rewards"))
        return {str(n): finite_or_none(dict_or_empty(s).get("weight", 1.0)) or 0.0 for n, s in specs.items()}

    @property
    def rewards(self) -> list[str]:
        """Every reward that was measured or that the recipe names, the trained ones first."""
        heldout = [n.removesuffix("/mean") for n in self.names("heldout") if _is_reward(n)]
        in_training = [n.split("/")[1] for n in self.names() if n.startswith("reward/") and n.count("/") == 2]
        names = dict.fromkeys([*self.weights, *heldout, *in_training])
        names.pop("total", None)  # of several trained rewards: see evaluations.trained_total
        return sorted(names, key=lambda name: self.weights.get(name, 1.0) == 0)

    @property
    def last(self) -> int:
        """The last iteration of which anything was written."""
        written = [row["iteration"] for row in self.train + self.heldout]
        return max(written or [e.iteration for e in self.evaluations], default=0)

    @property
    def planned(self) -> int | None:
        """How many iterations the recipe asks for."""
        value = dict_or_empty(self.recipe.get("train")).get("iterations")
        return value if isinstance(value, int) else None

    @property
    def finished(self) -> bool:
        """Whether the run reached the end that its recipe asks for; one that `watch.on_hack` ended counts."""
        if self.rolled_back:
            return True
        limit, spent = (
            finite_or_none(dict_or_empty(self.recipe.get("train")).get("seconds")),
            finite_or_none(self.summary.get("spent")),
        )
        in_time = limit is not None and (spent or 0.0) >= limit
        wanted = self.last if in_time else max(self.last, self.planned or 0)
        return bool(self.summary) and (finite_or_none(self.summary.get("iterations")) or 0) >= wanted

    @property
    def rolled_back(self) -> JsonObject:
        """alarm, at, to, what of a run that an alarm ended with the weights of an earlier iteration; else empty."""
        record = dict_or_empty(self.summary.get("rolled_back"))
        return record if {"alarm", "at", "to"} <= set(record) else {}

    @property
    def passed_over(self) -> dict[str, float]:
        """How many turns of prompts the run passed over, by reason."""
        start, counts = "prompts/passed_over/", dict[str, float]()
        for name in self.names():
            if name.startswith(start):
                counts[name.removeprefix(start)] = sum(value or 0.0 for _, value in self.points(name))
        return counts

    @property
    def seconds(self) -> float:
        """How long the run took: from its summary, else the sum of the timed phases."""
        total = finite_or_none(self.summary.get("seconds"))
        timed = [finite_or_none(value) or 0 for row in self.train + self.heldout for value in phases(row)]
        return total if total is not None and self.finished else sum(timed)

    @property
    def resumes(self) -> list[JsonObject]:
        """All starts in run.json but the first."""
        return [s for s in list_or_empty(self.run.get("starts")) if isinstance(s, dict)][1:]


def read_run(folder: Path) -> RunData:
    """Everything in a run's folder. Raises UserError if it is not a run's folder."""
    if not any((folder / name).is_file() for name in ("recipe.yaml", "metrics.jsonl")):
        got = "no recipe.yaml and no metrics.jsonl in it" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {got}, accepted: the folder of a run; name one that `flowrl run` has written")
    notes: list[str] = []
    recipe_text = _read_text(folder / "recipe.yaml", notes)
    rows = _read_lines(folder / "metrics.jsonl", notes)
    evaluations = [_read_evaluation(path, notes) for path in sorted((folder / "heldout").glob("*.json"))]
    return RunData(
        folder=folder,
        recipe=_parse_recipe(recipe_text, notes),
        recipe_text=recipe_text,
        run=_read_object(folder / "run.json", notes),
        train=_last_by_iteration(rows, "train"),
        heldout=_last_by_iteration(rows, "heldout"),
        evaluations=_drop_later_than_metrics(evaluations, rows),
        alarms=_read_lines(folder / "alarms.jsonl", notes),
        summary=_read_object(folder / "summary.json", notes),
        notes=notes,
    )


def finite_or_none(value: object) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def dict_or_empty(value: object) -> JsonObject:
    """A mapping as it is, anything else as an empty one."""
    return value if isinstance(value, dict) else {}


def list_or_empty(value: object) -> list[JSON]:
    """A list as it is, anything else as an empty one."""
    return value if isinstance(value, list) else []


def _is_reward(metric: str) -> bool:
    return metric.endswith("/mean") and not metric.startswith("samples/")


def _last_by_iteration(rows: list[JsonObject], kind: str) -> list[JsonObject]:
    """The last line of each iteration."""
    last = {row["iteration"]: row for row in rows if row.get("kind") == kind}
    return [last[i] for i in sorted(last)]


def _drop_later_than_metrics(
    evaluations: list[EvaluationRecord | None], rows: list[JsonObject]
) -> list[EvaluationRecord]:
    """Evaluations in order of iteration, without those after the last metrics: a resumed run repeats them."""
    last = max((row["iteration"] for row in rows), default=math.inf)
    return sorted((e for e in evaluations if e is not None and e.iteration <= last), key=lambda e: e.iteration)


def _read_text(path: Path, notes: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        notes.append(f"{path.name} could not be read ({error.strerror})")
        return ""


def _read_lines(path: Path, notes: list[str]) -> list[JsonObject]:
    """The objects of a .jsonl file that name an iteration; a killed run leaves a last line without an end."""
    text, rows, damaged = _read_text(path, notes), [], 0
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # brackets by the thousand
            row = None
        if isinstance(row, dict) and type(row.get("iteration")) is int:
            rows.append(row)
        elif line.strip():
            damaged += 1
    if damaged:
        cut = text and not text.endswith("\n") and damaged == 1
        what = "the last line was" if cut else "one line was" if damaged == 1 else f"{damaged} lines were"
        notes.append(f"{path.name}: {what} damaged and left out")
    return rows


def _read_object(path: Path, notes: list[str]) -> JsonObject:
    text = _read_text(path, notes)
    try:
        return dict_or_empty(json.loads(text)) if text.strip() else {}
    except (ValueError, RecursionError):
        notes.append(f"{path.name} is not valid JSON and was left out")
        return {}


def _parse_recipe(text: str, notes: list[str]) -> JsonObject:
    try:
        return dict_or_empty(scalars.read(text))  # bounded in levels and values, whoever wrote it
    except yaml.YAMLError:
        notes.append("recipe.yaml is not a valid recipe; its rewards and the planned iterations are unknown")
        return {}


def _read_evaluation(path: Path, notes: list[str]) -> EvaluationRecord | None:
    values = _read_object(path, notes)
    if type(values.get("iteration")) is not int:
        return None
    prompts = [
        {key: None if dict_or_empty(p).get(key) is None else str(p[key]) for key in ("id", "text", "kind")}
        for p in list_or_empty(values.get("prompts"))
    ]
    scores = {
        str(n): [finite_or_none(v) for v in list_or_empty(s)] for n, s in dict_or_empty(values.get("scores")).items()
    }
    if "total" in values:
        scores["total"] = [finite_or_none(v) for v in list_or_empty(values["total"])]
    pictures = [str(p) for p in list_or_empty(values.get("pictures"))]
    texts = [str(t) for t in list_or_empty(values.get("texts"))]
    sounds = tuple(str(p) for p in list_or_empty(values.get("sounds")))
    media = tuple(_read_media(files) for files in list_or_empty(values.get("media")))
    talks = tuple(_read_talk(parts) for parts in list_or_empty(values.get("talks")))
    return EvaluationRecord(values["iteration"], prompts, scores, pictures, texts, sounds, media, talks)


def _read_media(files: JSON) -> list[dict[str, str]]:
    return [{str(k): str(v) for k, v in dict_or_empty(file).items()} for file in list_or_empty(files)]


def _read_talk(parts: JSON) -> list[tuple[str, list[str | None]]]:
    rows = [dict_or_empty(part) for part in list_or_empty(parts)]
    paths = [[None if p is None else str(p) for p in list_or_empty(row.get("pictures"))] for row in rows]
    return [(str(row.get("text", "")), found) for row, found in zip(rows, paths, strict=True)]
