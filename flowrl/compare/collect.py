"""What finished runs left: held-out rewards over training time and over calls of the model, and what an iteration took.

Time is that of rollouts, scoring and training; loading, evaluations and checkpoints are not in it. A call is one row
(of a language model: one token) through the model once, counted as it ran.
"""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowrl.compare.grid import Cell, differing
from flowrl.names import UserError
from flowrl.recipe.load import written
from flowrl.report.read import RunData, finite_or_none, read_run

PHASES = ("rollout", "score", "train")
TOTAL = "total"  # the weighted sum, where several rewards are trained


@dataclass(frozen=True)
class Mark:
    """An evaluation: after which iteration, seconds and calls (None: not recorded), and the mean of each reward."""

    iteration: int
    seconds: float
    calls: float | None
    rewards: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """A run of a comparison. problem: why it is not compared, None where it is."""

    variant: str
    seed: int
    folder: Path
    data: RunData | None
    problem: str | None = None
    marks: list[Mark] = field(default_factory=list)

    def course(self, axis: str, reward: str) -> list[tuple[float, float]]:
        """(x, held-out mean) of a reward over `seconds` or `calls`, x rising."""
        found = [(getattr(mark, axis), mark.rewards.get(reward)) for mark in self.marks]
        return [(float(x), y) for x, y in found if x is not None and y is not None]

    def each(self, metric: str) -> float | None:
        """The median of a metric over the iterations; the first, which warms up, is left out where there are more."""
        rows = self.data.train if self.data is not None else []
        values = [v for row in rows[1:] or rows if (v := finite_or_none(row.get(metric))) is not None]
        return statistics.median(values) if values else None


def outcome(variant: str, seed: int, folder: Path, failure: str | None = None) -> Outcome:
    """What a run's folder holds. failure: why it ended early, where that is known."""
    if not (folder / "recipe.yaml").is_file():
        return Outcome(variant, seed, folder, None, failure or "not begun")
    data = read_run(folder)
    if not data.finished:
        done = f"stopped after iteration {data.last}" if data.train else "stopped before its first iteration"
        return Outcome(variant, seed, folder, data, failure or done)
    found = marks(data)
    return Outcome(variant, seed, folder, data, None if found else "it has no held-out evaluation", found)


def marks(data: RunData) -> list[Mark]:
    """The evaluations of a run with the time and the calls that came before each."""
    seconds = _running(data, [f"time_{phase}" for phase in PHASES])
    counted = all(finite_or_none(row.get("forwards/rollout")) is not None for row in data.train)
    calls = _running(data, ["forwards/rollout", "forwards/train"])
    found = []
    for row in data.heldout:
        at = row["iteration"]
        rewards = {n: v for n in data.rewards if (v := finite_or_none(row.get(f"{n}/mean"))) is not None}
        trained = {n: w for n, w in data.weights.items() if w}
        if (told := finite_or_none(row.get("total/mean"))) is not None:
            rewards = {TOTAL: told} | rewards
        elif len(trained) > 1 and all(n in rewards for n in trained):
            rewards = {TOTAL: sum(w * rewards[n] for n, w in trained.items())} | rewards
        found.append(Mark(at, _before(seconds, at), _before(calls, at) if counted else None, rewards))
    return found


def _running(data: RunData, metrics: Sequence[str]) -> list[tuple[int, float]]:
    total, found = 0.0, [(0, 0.0)]
    for row in data.train:
        total += sum(finite_or_none(row.get(metric)) or 0.0 for metric in metrics)
        found.append((row["iteration"], total))
    return found


def _before(running: Sequence[tuple[int, float]], iteration: int) -> float:
    return max((pair for pair in running if pair[0] <= iteration), default=(0, 0.0))[1]


def of_grid(cells: Iterable[Cell], failed: Mapping[Path, str]) -> list[Outcome]:
    """What the runs of a grid left, those that failed with their reason."""
    return [outcome(c.variant, c.seed, c.folder, failed.get(c.folder)) for c in cells]


def of_folders(folders: Sequence[Path]) -> list[Outcome]:
    """What finished run folders, or folders of them, hold. Runs whose recipes differ in their seed alone are one
    variant, named by what tells it from the others. Raises UserError where a folder holds no run."""
    runs = [run for folder in folders for run in _runs(folder)]
    recipes = {run: written(run / "recipe.yaml") for run in dict.fromkeys(runs)}
    groups: list[list[Path]] = []
    for run, recipe in recipes.items():
        same = (g for g in groups if not set(differing(recipes[g[0]], recipe)) - {"seed"})
        group = next(same, None)
        groups.append([run]) if group is None else group.append(run)
    names = _names([group[0] for group in groups], recipes)
    found = [outcome(name, recipes[run].seed, run) for group, name in zip(groups, names, strict=True) for run in group]
    seen: set[tuple[str, int]] = set()
    for one in found:
        if (one.variant, one.seed) in seen:
            raise UserError(f"{one.folder}: another run that is given has its recipe and its seed; name one of them")
        seen.add((one.variant, one.seed))
    return found


def _runs(folder: Path) -> list[Path]:
    if (folder / "recipe.yaml").is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob("**/recipe.yaml"))
    if not found:
        raise UserError(f"{folder}: no recipe.yaml in it or below, accepted: folders of runs; correct it")
    return found


def _names(firsts: Sequence[Path], recipes: Mapping[Path, Any]) -> list[str]:
    """A name for each group: the folder above seed-N that a grid made, else the values that differ, else the folder."""
    if len(firsts) == 1:
        return [firsts[0].parent.name if _is_seed(firsts[0]) else firsts[0].name]
    if all(map(_is_seed, firsts)) and len({p.parent.name for p in firsts}) == len(firsts):
        return [p.parent.name.replace("_", " ") for p in firsts]
    base, keys = recipes[firsts[0]], defaultdict(dict)
    for first in firsts[1:]:
        for key, (old, new) in differing(base, recipes[first]).items():
            if key != "seed":
                keys[key] |= {first: new, firsts[0]: old}
    ends = {key: key.rpartition(".")[2] for key in keys}
    words = {key: end if list(ends.values()).count(end) == 1 else key for key, end in ends.items()}
    old = {key: values[firsts[0]] for key, values in keys.items()}
    found = [
        " ".join(f"{words[key]}={values.get(first, old[key])}" for key, values in keys.items()) for first in firsts
    ]
    return found if len(keys) <= 3 and len(set(found)) == len(found) else _folders(firsts)


def _folders(firsts: Sequence[Path]) -> list[str]:
    names = [p.resolve().name for p in firsts]
    return names if len(set(names)) == len(names) else [str(p) for p in firsts]


def _is_seed(folder: Path) -> bool:
    return folder.name.startswith("seed-") and folder.name[5:].isdigit()


def order(outcomes: Iterable[Outcome]) -> list[str]:
    """The variants, as they first come."""
    return list(dict.fromkeys(o.variant for o in outcomes))
