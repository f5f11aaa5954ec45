"""A run's folder as `flowrl.runs.folder` writes it, with known numbers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

RECIPE = {
    "model": "shapes-flux",
    "lora": {"rank": 16},
    "rewards": {"fit": {"use": "shapes", "weight": 1.0}, "taste": {"use": "shapes_strict", "weight": 0.0}},
    "train": {"prompts": 4, "group": 6, "iterations": 8},
    "seed": 3,
}


def jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train_row(i: int, **more: Any) -> dict[str, Any]:
    """A line of metrics.jsonl as an iteration leaves it."""
    row = {"iteration": i, "kind": "train", "reward/fit/mean": 0.5 + i / 100, "reward/taste/mean": 0.3}
    row |= {"reward/total/mean": 0.5 + i / 100, "groups/zero_variance": 0.25, "ratio": 1 + 1e-6 * i, "clip_frac": 0.0}
    row |= {"approx_kl": 10.0 ** (i % 4 - 9), "grad_norm": 0.01 * i, "lr": 1e-3, "loss": -1e-5}
    return row | {"time_rollout": 2.0, "time_score": 0.5, "time_train": 1.5} | more


def evaluation(
    folder: Path, iteration: int, scores: Mapping[str, list], *, texts: Sequence[str] = (), prompts: Any = None
) -> None:
    """heldout/NNNNN.json with a picture for each prompt, or texts."""
    number = len(next(iter(scores.values())))
    prompts = prompts or [{"id": f"p{i}", "text": f"prompt {i}", "kind": "ab"[i % 2]} for i in range(number)]
    (folder / "heldout").mkdir(exist_ok=True)
    pictures = []
    for i in range(0 if texts else number):
        name = f"heldout/{iteration:05d}-{i:03d}.png"
        Image.fromarray(np.full((32, 32, 3), (iteration * 40 + i) % 256, np.uint8)).save(folder / name)
        pictures.append(name)
    values = {"iteration": iteration, "prompts": prompts, "scores": scores, "pictures": pictures, "texts": list(texts)}
    (folder / "heldout" / f"{iteration:05d}.json").write_text(json.dumps(values), encoding="utf-8")


def held_row(iteration: int, scores: Mapping[str, list]) -> dict[str, Any]:
    """The line of metrics.jsonl that belongs to an evaluation."""
    row: dict[str, Any] = {"iteration": iteration, "kind": "heldout", "time_eval": 4.0}
    for name, values in scores.items():
        row[f"{name}/mean"] = float(np.mean(values))
        row[f"{name}/error"] = float(np.std(values, ddof=1) / len(values) ** 0.5)
    return row


def make(folder: Path, before: Mapping[str, list], after: Mapping[str, list], **changes: Any) -> Path:
    """A finished run of 8 iterations with evaluations before, at 4 (as before) and after."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | changes), encoding="utf-8")
    points = {0: before, 4: before, 8: after}
    rows = [train_row(i) for i in range(1, 9)] + [held_row(i, s) for i, s in points.items()]
    jsonl(folder / "metrics.jsonl", rows)
    for i, scores in points.items():
        evaluation(folder, i, scores)
    (folder / "summary.json").write_text(json.dumps({"iterations": 8, "seconds": 50.0, "heldout": {}}))
    return folder
