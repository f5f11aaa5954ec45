"""Grids whose runs are forked off a server that has imported torch, and planted runs with known courses."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import report_support
from flowrl import cli
from flowrl.recipe.load import dump, load
from resume_support import begun


class Forked:
    """A run of the command line in a process of its own."""

    def __init__(self, command: Sequence[str], log: Path):
        self.process = begun(_called, list(command[2:]), log)

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode


def _called(arguments: list[str], log: Path) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = arguments
    cli.main()


def planted(
    folder: Path,
    seed: int,
    course: Mapping[int, float],
    *,
    changes: Sequence[str] = (),
    each: float = 2.0,
    calls: int = 10,
) -> Path:
    """A finished run whose held-out rewards at these iterations are known, `each` seconds and `calls` an iteration."""
    folder.mkdir(parents=True)
    last = max(course)
    recipe = load("tiny_flow_grpo", [f"seed={seed}", f"train.iterations={last}", f"output={folder}", *changes])
    (folder / "recipe.yaml").write_text(dump(recipe))
    rows: list[dict[str, Any]] = []
    for i in range(1, last + 1):
        more = {"time_rollout": each / 2, "time_score": 0.0, "time_train": each / 2}
        rows.append(report_support.train_row(i, **more, **{"forwards/rollout": calls - 4, "forwards/train": 4}))
    for i, value in course.items():
        scores = {"shapes": [value - 0.1, value + 0.1], "strict": [0.0, 1.0]}
        rows.append(report_support.held_row(i, scores))
        report_support.evaluation(folder, i, scores)
    report_support.jsonl(folder / "metrics.jsonl", rows)
    (folder / "summary.json").write_text(json.dumps({"iterations": last, "seconds": 9.0}))
    return folder
