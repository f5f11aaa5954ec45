"""Exports a policy's weights, and verifies an export by using it.

What is specific to a kind of model is in its `exporter`; everything here holds for all kinds.
"""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from flowrl.build import build_policy
from flowrl.contracts import Prompt
from flowrl.exports.card import model_card
from flowrl.kinds import kind_of
from flowrl.kinds.kind import Exporter
from flowrl.names import UserError
from flowrl.recipe.schema import Recipe
from flowrl.runs.weights import load_weights

# Largest difference of a sample's values (pixels in [0, 1]) that --verify accepts, by the dtype of the weights. In
# half precision a plain pipeline also rounds its latents at every step, while the policy keeps them in float32.
TOLERANCE = {"float32": 1e-3, "float16": 0.03, "bfloat16": 0.1}


@dataclass(frozen=True)
class ExportDifference:
    """Differences of sample values: largest and mean between export and policy; moved: the largest between the policy
    and the untrained model; tolerance: the largest that is accepted."""

    largest: float
    mean: float
    moved: float
    tolerance: float

    @property
    def accepted(self) -> bool:
        """Whether the export draws what the policy draws. NaN is not accepted."""
        return self.largest <= self.tolerance


def compare_samples(
    expected: Sequence[Tensor], redrawn: Sequence[Tensor], base: Sequence[Tensor], tolerance: float
) -> ExportDifference:
    """The difference of samples that should be equal, tensors of equal shapes; `base`: those of the untrained model."""
    gaps = [(a - b).abs() for a, b in zip(expected, redrawn, strict=True)]
    moved = max(_largest((a - b).abs()) for a, b in zip(expected, base, strict=True))
    mean = sum(float(g.mean()) for g in gaps) / len(gaps)
    return ExportDifference(max(map(_largest, gaps)), mean, moved, tolerance)


def _largest(gap: Tensor) -> float:
    return float("inf") if gap.isnan().any() else float(gap.max())


def refuse_nonempty(folder: Path) -> None:
    """Raises UserError if the folder to write exists and is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--to: {folder} already exists and is not empty; name another folder with --to FOLDER")


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, renamed to `folder` when everything is written, and removed on an error.

    Raises UserError if it cannot be written.
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
) -> ExportDifference | None:
    """Writes a run's weights (see `load_weights`) and their README.md to a new folder.

    With prompts, the export is loaded and draws samples of them; returns their difference from the policy's samples.
    Raises UserError if the run has no such weights or the folder cannot be written.
    """
    exporter, base, expected = _write_export(
        recipe, run, folder, kind, which, raw, prompts
    )  # the policy's memory is free now
    if not prompts:
        return None
    redrawn = exporter.redraw(recipe, folder, kind, prompts)
    return compare_samples(expected, redrawn, base, TOLERANCE[recipe.dtype.model] if tolerance is None else tolerance)


def _write_export(
    recipe: Recipe, run: Path, folder: Path, kind: str, which: str, raw: bool, prompts: Sequence[Prompt]
) -> tuple[Exporter, list[Tensor], list[Tensor]]:
    """Writes the export; returns (exporter, samples of the untrained policy, samples of the trained policy)."""
    refuse_nonempty(folder)
    policy, exporter = build_policy(recipe), kind_of(recipe).exporter
    base = exporter.draw(policy, recipe, prompts)
    load_weights(policy, run, which, raw)
    expected = exporter.draw(policy, recipe, prompts)
    words = f"{'raw' if raw else 'averaged'} {which}" if recipe.train.ema is not None else which
    with atomic_folder(folder) as aside:
        exporter.write(policy, aside, kind)
        text = model_card(recipe, run, kind, words, exporter.usage(recipe, aside, kind))
        (aside / "README.md").write_text(text, encoding="utf-8")
    return exporter, base, expected
