"""A finished scan, and its files: scan.json, scan.csv, grids of pictures (or texts.txt) and report.html.

scan.json    everything, by prompt too
scan.csv     a line a value
grids/       a sheet a value: a row a prompt, the ODE's sample first, then members of the group
texts.txt    the same of a language model
report.html  all of it on one page
"""

import csv
import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flowrl import __version__
from flowrl.core.evaluation import Mean
from flowrl.media.pictures import save_grid
from flowrl.recipe.schema import Recipe
from flowrl.scan.advice import Advice, as_number
from flowrl.scan.draw import Shot
from flowrl.scan.measures import Row

MEANS = ("spread", "reward", "ode", "quality", "distance")


@dataclass(frozen=True)
class Scan:
    """What was scanned and what was found. shots: of each value, its first prompts. source: whose weights drew."""

    name: str
    key: str
    recipe: Recipe
    source: str
    iteration: int
    prompts: list[str]
    rows: list[Row]
    shots: list[list[Shot]]
    advice: Advice
    tolerance: float
    seconds: float

    @property
    def language(self) -> bool:
        """Whether samples are texts."""
        return self.recipe.generation is not None

    @property
    def reference(self) -> str:
        """What samples are held against, in words."""
        return reference(self.recipe)


def reference(recipe: Recipe) -> str:
    """What samples of a recipe are held against, in words."""
    return "the ODE" if recipe.generation is None else "greedy decoding"


def write(scan: Scan, folder: Path) -> None:
    """All files but the page."""
    text = json.dumps(record(scan), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "scan.json").write_text(text + "\n", encoding="utf-8")
    with (folder / "scan.csv").open("w", encoding="utf-8", newline="") as file:
        lines = [_line(scan, row) for row in scan.rows]
        table = csv.DictWriter(file, dict.fromkeys(name for line in lines for name in line))
        table.writeheader()
        table.writerows(lines)
    for number, (row, shots) in enumerate(zip(scan.rows, scan.shots, strict=True), 1):
        pictures = [shot.pictures for shot in shots if shot.pictures is not None]
        if pictures:
            path = folder / "grids" / f"{number:02d}_{re.sub(r'[^A-Za-z0-9_.-]+', '_', row.label)[:40]}.png"
            save_grid(torch.cat(pictures), path, columns=len(pictures[0]))
    if scan.language:
        (folder / "texts.txt").write_text(_texts(scan), encoding="utf-8")


def record(scan: Scan) -> dict[str, Any]:
    """The scan as plain JSON values; what is not known is null."""
    return {
        "flowrl": __version__,
        "recipe": scan.name,
        "key": scan.key,
        "weights": scan.source,
        "iteration": scan.iteration,
        "seed": scan.recipe.seed,
        "group": scan.recipe.train.group,
        "prompts": scan.prompts,
        "seconds": round(scan.seconds, 1),
        "reference": scan.reference,
        "tolerance": scan.tolerance,
        "limit": clean(scan.advice.limit),
        "recommended": scan.advice.label,
        "why": scan.advice.text,
        "not_told_apart": list(scan.advice.open),
        "values": [_row(scan, row) for row in scan.rows],
    }


def _row(scan: Scan, row: Row) -> dict[str, Any]:
    return {
        "value": as_number(row.label) if as_number(row.label) is not None else row.label,
        "verdict": scan.advice.verdicts[row.label],
        **{name: _mean(getattr(row, name)) for name in MEANS},
        "silent": row.silent,
        "diversity": None if row.diversity is None else clean(row.diversity),
        "rewards": {n: {"reward": _mean(r), "quality": _mean(q)} for n, (r, q) in row.by_reward.items()},
        "statistics": {name: clean(value) for name, value in row.statistics.items()},
        "reference_statistics": {name: clean(value) for name, value in row.ode_statistics.items()},
        "seconds_per_sample": row.seconds,
        "forwards_per_sample": row.forwards,
        "reference_forwards_per_sample": row.ode_forwards,
        "by_prompt": {
            "spread": [clean(v) for v in row.spreads.tolist()],
            "quality": [clean(v) for v in row.qualities.tolist()],
        },
    }


def _line(scan: Scan, row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {scan.key: row.label, "verdict": scan.advice.verdicts[row.label]}
    means = {name: getattr(row, name) for name in MEANS}
    for name, (reward, quality) in row.by_reward.items():
        means |= {f"reward/{name}": reward, f"quality/{name}": quality}
    for name, mean in means.items():
        if mean is not None:
            found |= {name: clean(mean.value), f"{name}_error": clean(mean.error)}
    found |= {"silent": row.silent, "seconds_per_sample": row.seconds, "forwards_per_sample": row.forwards}
    return found | {name: clean(value) for name, value in row.statistics.items()}


def _mean(mean: Mean | None) -> dict[str, Any] | None:
    return None if mean is None else {name: clean(value) for name, value in asdict(mean).items()}


def clean(value: float) -> float | None:
    """A number as JSON knows them."""
    return value if math.isfinite(value) else None


def _texts(scan: Scan) -> str:
    blocks = []
    for row, shots in zip(scan.rows, scan.shots, strict=True):
        blocks.append(f"# {scan.key}={row.label}\n")
        for shot in shots:
            names = ["greedy", *(f"sample {i}" for i in range(1, len(shot.rewards)))]
            lines = zip(names, shot.rewards, shot.texts or (), strict=True)
            blocks.append(f"{shot.prompt}\n" + "".join(f"  {n} ({r:.3f}): {t}\n" for n, r, t in lines))
    return "\n".join(blocks)
