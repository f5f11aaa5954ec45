"""Held-out samples side by side: the same prompts and the same noise, from the base model and from every variant."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowrl.compare.collect import RunOutcome, variants_in_order
from flowrl.report.evaluations import evenly_spaced, index_by_id, scores_of
from flowrl.report.read import EvaluationRecord

UNTRAINED = "before training"


@dataclass(frozen=True)
class SampleTile:
    """One sample: its picture, relative to `folder`, or its text, and its scores."""

    folder: Path
    picture: str | None
    text: str | None
    scores: dict[str, float | None]


@dataclass(frozen=True)
class SampleSheet:
    """columns: names. rows: a prompt and its samples, one per column. seed: of the runs that are shown."""

    seed: int
    columns: list[str]
    rows: list[tuple[str, list[SampleTile]]]

    @property
    def pictures(self) -> bool:
        """Whether its samples are pictures."""
        return bool(self.rows) and self.rows[0][1][0].picture is not None


def make_sheet(outcomes: Sequence[RunOutcome], number: int = 8) -> SampleSheet | None:
    """Samples of evenly spaced prompts, of the lowest seed that every variant finished; None if there are none."""
    compared = [o for o in outcomes if o.problem is None and o.data is not None and _with_samples(o)]
    seeds = [{o.seed for o in compared if o.variant == name} for name in variants_in_order(compared)]
    shared = set.intersection(*seeds) if seeds else set()
    if not shared:
        return None
    shown = [o for o in compared if o.seed == min(shared)]
    columns = [(o.variant, o.folder, _with_samples(o)[-1]) for o in shown]
    first = _with_samples(shown[0])[0]
    if first.iteration == 0 and len(_with_samples(shown[0])) > 1:
        columns = [(UNTRAINED, shown[0].folder, first), *columns]
    prompts = evenly_spaced(_common_ids([evaluation for *_, evaluation in columns]), number)
    rows = []
    for name in prompts:
        tiles = [_tile(folder, evaluation, index_by_id(evaluation)[name]) for _, folder, evaluation in columns]
        evaluation = columns[0][2]
        text = evaluation.prompts[index_by_id(evaluation)[name]]["text"]
        rows.append((text or name, tiles))
    return SampleSheet(min(shared), [name for name, *_ in columns], rows) if rows else None


def _with_samples(one: RunOutcome) -> list[EvaluationRecord]:
    """Evaluations that kept samples."""
    return [e for e in one.data.evaluations if e.pictures or e.texts] if one.data is not None else []


def _common_ids(evaluations: Sequence[EvaluationRecord]) -> list[str]:
    kept = [{n for n, i in index_by_id(e).items() if i < max(len(e.pictures), len(e.texts))} for e in evaluations]
    return [name for name in index_by_id(evaluations[0]) if all(name in k for k in kept)]


def _tile(folder: Path, evaluation: EvaluationRecord, index: int) -> SampleTile:
    picture = evaluation.pictures[index] if index < len(evaluation.pictures) else None
    text = evaluation.texts[index] if index < len(evaluation.texts) else None
    return SampleTile(folder, picture, text, scores_of(evaluation, index))
