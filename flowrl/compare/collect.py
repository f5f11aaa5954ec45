"""Results of finished runs: held-out rewards over training time and over model calls, and the cost of an iteration.

Time includes rollouts, scoring and training, but no loading, evaluations and checkpoints. A call is one forward pass
of the model on one row (of a language model: one token), counted as it ran; one with gradient counts three
(compare/forwards.py).
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowrl.compare.forwards import measured_forwards
from flowrl.compare.grid import Cell, differing_keys
from flowrl.names import UserError
from flowrl.recipe.load import load_unchecked
from flowrl.recipe.schema import Recipe
from flowrl.report.read import RunData, finite_or_none, read_run

PHASES = ("rollout", "score", "train")
TOTAL = "total"  # the weighted sum, where several rewards are trained


@dataclass(frozen=True)
class EvaluationPoint:
    """An evaluation: the iteration, seconds and calls before it (None: not recorded), and the mean of each reward."""

    iteration: int
    seconds: float
    calls: float | None
    rewards: dict[str, float]


@dataclass(frozen=True)
class RunOutcome:
    """A run of a comparison. problem: why it is not compared, None where it is."""

    variant: str
    seed: int
    folder: Path
    data: RunData | None
    problem: str | None = None
    points: list[EvaluationPoint] = field(default_factory=list)

    def curve(self, axis: str, reward: str) -> list[tuple[float, float]]:
        """(x, held-out mean) of a reward over `seconds` or `calls`, x rising."""
        pairs = [(getattr(point, axis), point.rewards.get(reward)) for point in self.points]
        return [(float(x), y) for x, y in pairs if x is not None and y is not None]

    def median(self, metric: str) -> float | None:
        """The median of a metric over iterations; the first one, a warm-up, is left out if there are others."""
        rows = self.data.train if self.data is not None else []
        values = [v for row in rows[1:] or rows if (v := finite_or_none(row.get(metric))) is not None]
        return statistics.median(values) if values else None


def read_outcome(variant: str, seed: int, folder: Path, failure: str | None = None) -> RunOutcome:
    """The outcome in a run's folder. failure: why it ended early, where that is known."""
    if not (folder / "recipe.yaml").is_file():
        return RunOutcome(variant, seed, folder, None, failure or "not started")
    data = read_run(folder)
    if not data.finished:
        stopped = f"stopped after iteration {data.last}" if data.train else "stopped before its first iteration"
        return RunOutcome(variant, seed, folder, data, failure or stopped)
    points = evaluation_points(data, load_unchecked(folder / "recipe.yaml"))
    return RunOutcome(variant, seed, folder, data, None if points else "it has no held-out evaluation", points)


def evaluation_points(data: RunData, recipe: Recipe) -> list[EvaluationPoint]:
    """The evaluations of a run, each with the training time and calls before it."""
    seconds = _cumulative(data, lambda row: sum(finite_or_none(row.get(f"time_{phase}")) or 0.0 for phase in PHASES))
    has_calls = all(finite_or_none(row.get("forwards/rollout")) is not None for row in data.train)
    calls = _cumulative(data, lambda row: _forwards(recipe, row)) if has_calls else []
    points = []
    for row in data.heldout:
        at = row["iteration"]
        rewards = {n: v for n in data.rewards if (v := finite_or_none(row.get(f"{n}/mean"))) is not None}
        trained = {n: w for n, w in data.weights.items() if w}
        if (total := finite_or_none(row.get("total/mean"))) is not None:
            rewards = {TOTAL: total} | rewards
        elif len(trained) > 1 and all(n in rewards for n in trained):
            rewards = {TOTAL: sum(w * rewards[n] for n, w in trained.items())} | rewards
        points.append(
            EvaluationPoint(at, _value_before(seconds, at), _value_before(calls, at) if has_calls else None, rewards)
        )
    return points


def _forwards(recipe: Recipe, row: Mapping[str, Any]) -> float:
    drawn, looked = (finite_or_none(row.get(f"forwards/{name}")) or 0.0 for name in ("rollout", "train"))
    return measured_forwards(recipe, row["iteration"] - 1, drawn, looked)


def _cumulative(data: RunData, cost: Callable[[Mapping[str, Any]], float]) -> list[tuple[int, float]]:
    total, sums = 0.0, [(0, 0.0)]
    for row in data.train:
        total += cost(row)
        sums.append((row["iteration"], total))
    return sums


def _value_before(running: Sequence[tuple[int, float]], iteration: int) -> float:
    return max((pair for pair in running if pair[0] <= iteration), default=(0, 0.0))[1]


def grid_outcomes(cells: Iterable[Cell], failed: Mapping[Path, str]) -> list[RunOutcome]:
    """The outcomes of a grid's runs; failed: why a run ended early."""
    return [read_outcome(c.variant, c.seed, c.folder, failed.get(c.folder)) for c in cells]


def folder_outcomes(folders: Sequence[Path]) -> list[RunOutcome]:
    """The outcomes in run folders, or in folders of them. Runs whose recipes differ in their seed alone are one
    variant, named by the keys that differ from the others. Raises UserError where a folder holds no run."""
    runs = [run for folder in folders for run in _run_folders(folder)]
    recipes = {run: load_unchecked(run / "recipe.yaml") for run in dict.fromkeys(runs)}
    groups: list[list[Path]] = []
    for run, recipe in recipes.items():
        same = (g for g in groups if not set(differing_keys(recipes[g[0]], recipe)) - {"seed"})
        group = next(same, None)
        groups.append([run]) if group is None else group.append(run)
    names = _variant_names([group[0] for group in groups], recipes)
    outcomes = [
        read_outcome(name, recipes[run].seed, run) for group, name in zip(groups, names, strict=True) for run in group
    ]
    seen: set[tuple[str, int]] = set()
    for one in outcomes:
        if (one.variant, one.seed) in seen:
            raise UserError(f"{one.folder}: another of the given runs has the same recipe and seed; give only one")
        seen.add((one.variant, one.seed))
    return outcomes


def _run_folders(folder: Path) -> list[Path]:
    if (folder / "recipe.yaml").is_file():
        return [folder]
    runs = sorted(path.parent for path in folder.glob("**/recipe.yaml"))
    if not runs:
        raise UserError(f"{folder}: no recipe.yaml in or below it, accepted: folders of runs; correct the path")
    return runs


def _variant_names(firsts: Sequence[Path], recipes: Mapping[Path, Recipe]) -> list[str]:
    """A name for each group: the folder above seed-N in a grid, else the values that differ, else the run's folder."""
    if len(firsts) == 1:
        return [firsts[0].parent.name if _is_seed_folder(firsts[0]) else firsts[0].name]
    if all(map(_is_seed_folder, firsts)) and len({p.parent.name for p in firsts}) == len(firsts):
        return [p.parent.name.replace("_", " ") for p in firsts]
    base, keys = recipes[firsts[0]], defaultdict(dict)
    for first in firsts[1:]:
        for key, (old, new) in differing_keys(base, recipes[first]).items():
            if key != "seed":
                keys[key] |= {first: new, firsts[0]: old}
    ends = {key: key.rpartition(".")[2] for key in keys}
    words = {key: end if list(ends.values()).count(end) == 1 else key for key, end in ends.items()}
    old = {key: values[firsts[0]] for key, values in keys.items()}
    names = [
        " ".join(f"{words[key]}={values.get(first, old[key])}" for key, values in keys.items()) for first in firsts
    ]
    return names if len(keys) <= 3 and len(set(names)) == len(names) else _folder_names(firsts)


def _folder_names(firsts: Sequence[Path]) -> list[str]:
    names = [p.resolve().name for p in firsts]
    return names if len(set(names)) == len(names) else [str(p) for p in firsts]


def _is_seed_folder(folder: Path) -> bool:
    return folder.name.startswith("seed-") and folder.name[5:].isdigit()


def variants_in_order(outcomes: Iterable[RunOutcome]) -> list[str]:
    """The variants, in order of first appearance."""
    return list(dict.fromkeys(o.variant for o in outcomes))
