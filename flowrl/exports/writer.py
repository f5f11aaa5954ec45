"""Exports a policy's weights, and proves an export by using it.

What a kind of model needs of its own stands behind its `exporter`: everything here holds for all of them.
"""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from flowrl.build import build_policy
from flowrl.contracts import Prompt
from flowrl.exports.card import card
from flowrl.kinds import kind_of
from flowrl.kinds.kind import Exporter
from flowrl.names import UserError
from flowrl.recipe.schema import Recipe
from flowrl.runs.weights import load_weights

# Largest difference of a sample's values (pixels in [0, 1]) that --verify accepts, by the dtype of the weights. In
# half precision a plain pipeline also rounds its latents at every step, where the policy keeps them in float32.
TOLERANCE = {"float32": 1e-3, "float16": 0.03, "bfloat16": 0.1}


@dataclass(frozen=True)
class Difference:
    """How far an export's samples are from the policy's, and how far training had moved those (both the largest)."""

    largest: float
    mean: float
    moved: float
    tolerance: float

    @property
    def fine(self) -> bool:
        """Whether the export draws what the policy draws. NaN is not fine."""
        return self.largest <= self.tolerance


def compare(
    expected: Sequence[Tensor], found: Sequence[Tensor], base: Sequence[Tensor], tolerance: float
) -> Difference:
    """The difference of samples that should be equal; `base` are those of the untrained model."""
    gaps = [(a - b).abs() for a, b in zip(expected, found, strict=True)]
    moved = max(_largest((a - b).abs()) for a, b in zip(expected, base, strict=True))
    mean = sum(float(g.mean()) for g in gaps) / len(gaps)
    return Difference(max(map(_largest, gaps)), mean, moved, tolerance)


def _largest(gap: Tensor) -> float:
    return float("inf") if gap.isnan().any() else float(gap.max())


def refuse_taken(folder: Path) -> None:
    """Raises UserError where a folder to write holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--to: {folder} is there already and not empty; name another folder with --to FOLDER")


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into, which takes its name when all is written, and goes if it is not.

    Raises UserError where it cannot be written.
    """
    aside = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        if folder.exists():
            folder.rmdir()
        aside.replace(folder)
    except OSError as error:
        raise UserError(f"--to: {folder} cannot be written ({error.strerror}); name another folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def export_run(
    recipe: Recipe,
    run: Path,
    folder: Path,
    kind: str,
    which: str = "final",
    raw: bool = False,
    *,
    prompts: Sequence[Prompt] = (),
    tolerance: float | None = None,
) -> Difference | None:
    """Writes a run's weights (see `load_weights`) and their README.md to a new folder.

    With prompts, the export is loaded afresh and draws them; returns how far that is from what the policy draws. Raises
    UserError where the run has no such weights or the folder cannot be written.
    """
    exporter, base, expected = _write(recipe, run, folder, kind, which, raw, prompts)  # the policy's memory is free now
    if not prompts:
        return None
    found = exporter.redraw(recipe, folder, kind, prompts)
    return compare(expected, found, base, TOLERANCE[recipe.dtype.model] if tolerance is None else tolerance)


def _write(
    recipe: Recipe, run: Path, folder: Path, kind: str, which: str, raw: bool, prompts: Sequence[Prompt]
) -> tuple[Exporter, list[Tensor], list[Tensor]]:
    """Writes the export; what the untrained and the trained policy draw."""
    refuse_taken(folder)
    policy, exporter = build_policy(recipe), kind_of(recipe).exporter
    base = exporter.draw(policy, recipe, prompts)
    load_weights(policy, run, which, raw)
    expected = exporter.draw(policy, recipe, prompts)
    words = f"{'raw' if raw else 'averaged'} {which}" if recipe.train.ema is not None else which
    with whole(folder) as aside:
        exporter.write(policy, aside, kind)
        text = card(recipe, run, kind, words, exporter.usage(recipe, aside, kind))
        (aside / "README.md").write_text(text, encoding="utf-8")
    return exporter, base, expected
