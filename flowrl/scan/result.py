"""A finished scan, and its files: scan.json, scan.csv, grids of pictures (or texts.txt) and report.html.

scan.json    everything, also by prompt
scan.csv     one line per value
grids/       one sheet per value: a row for each prompt, the ODE's sample first, then members of the group
texts.txt    the same for a language model
report.html  all of it on one page
"""

import csv
import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from flowrl import __version__
from flowrl.core.evaluation import Mean
from flowrl.kinds import kind_of
from flowrl.media.pictures import save_grid
from flowrl.recipe.schema import Recipe
from flowrl.scan.advice import Advice, label_number
from flowrl.scan.draw import PromptSamples
from flowrl.scan.measures import ValueMeasures

MEANS = ("spread", "reward", "ode", "quality", "distance")


@dataclass(frozen=True)
class Scan:
    """A finished scan. shots: for each value, the samples of its first prompts. source: the weights that drew them."""

    name: str
    key: str
    recipe: Recipe
    source: str
    iteration: int
    prompts: list[str]
    rows: list[ValueMeasures]
    shots: list[list[PromptSamples]]
    advice: Advice
    tolerance: float
    seconds: float

    @property
    def texts(self) -> bool:
        """Whether samples are texts."""
        return kind_of(self.recipe).texts

    @property
    def reference(self) -> str:
        """What samples are compared with, in words."""
        return kind_of(self.recipe).words.reference


def write(scan: Scan, folder: Path) -> None:
    """Writes all files but the page."""
    text = json.dumps(as_record(scan), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "scan.json").write_text(text + "\n", encoding="utf-8")
    with (folder / "scan.csv").open("w", encoding="utf-8", newline="") as file:
        lines = [_csv_line(scan, row) for row in scan.rows]
        table = csv.DictWriter(file, dict.fromkeys(name for line in lines for name in line))
        table.writeheader()
        table.writerows(lines)
    for number, (row, shots) in enumerate(zip(scan.rows, scan.shots, strict=True), 1):
        pictures = [shot.pictures for shot in shots if shot.pictures is not None]
        if pictures:
            path = folder / "grids" / f"{number:02d}_{re.sub(r'[^A-Za-z0-9_.-]+', '_', row.label)[:40]}.png"
            save_grid(torch.cat(pictures), path, columns=len(pictures[0]))
    if scan.texts:
        (folder / "texts.txt").write_text(_texts(scan), encoding="utf-8")


def as_record(scan: Scan) -> dict[str, object]:
    """The scan as plain JSON values; unknown ones are null."""
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
        "limit": json_number(scan.advice.limit),
        "recommended": scan.advice.label,
        "why": scan.advice.text,
        "not_told_apart": list(scan.advice.open),
        "values": [_value_record(scan, row) for row in scan.rows],
    }


def _value_record(scan: Scan, row: ValueMeasures) -> dict[str, object]:
    return {
        "value": label_number(row.label) if label_number(row.label) is not None else row.label,
        "verdict": scan.advice.verdicts[row.label],
        **{name: _mean_record(getattr(row, name)) for name in MEANS},
        "silent": row.silent,
        "diversity": None if row.diversity is None else json_number(row.diversity),
        "rewards": {n: {"reward": _mean_record(r), "quality": _mean_record(q)} for n, (r, q) in row.by_reward.items()},
        "statistics": {name: json_number(value) for name, value in row.statistics.items()},
        "reference_statistics": {name: json_number(value) for name, value in row.ode_statistics.items()},
        "seconds_per_sample": row.seconds,
        "forwards_per_sample": row.forwards,
        "reference_forwards_per_sample": row.ode_forwards,
        "by_prompt": {
            "spread": [json_number(v) for v in row.spreads.tolist()],
            "quality": [json_number(v) for v in row.qualities.tolist()],
        },
    }


def _csv_line(scan: Scan, row: ValueMeasures) -> dict[str, object]:
    line: dict[str, object] = {scan.key: row.label, "verdict": scan.advice.verdicts[row.label]}
    means = {name: getattr(row, name) for name in MEANS}
    for name, (reward, quality) in row.by_reward.items():
        means |= {f"reward/{name}": reward, f"quality/{name}": quality}
    for name, mean in means.items():
        if mean is not None:
            line |= {name: json_number(mean.value), f"{name}_error": json_number(mean.error)}
    line |= {"silent": row.silent, "seconds_per_sample": row.seconds, "forwards_per_sample": row.forwards}
    return line | {name: json_number(value) for name, value in row.statistics.items()}


def _mean_record(mean: Mean | None) -> dict[str, object] | None:
    return None if mean is None else {name: json_number(value) for name, value in asdict(mean).items()}


def json_number(value: float) -> float | None:
    """A finite number as it is; None for NaN and infinities, which JSON cannot hold."""
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
