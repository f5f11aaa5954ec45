"""Curves of several runs on one axis: linear between evaluations, mean and standard error over seeds.

No run is extrapolated beyond its last evaluation: final values are compared where the shortest run ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flowrl.compare.collect import RunOutcome, variants_in_order
from flowrl.report.numerals import MeanWithError, mean

SeedCurve = Sequence[tuple[float, float]]  # (x, value), x rising
CURVE_POINTS = 60  # of a mean curve


@dataclass(frozen=True)
class VariantCurve:
    """The mean curve of a variant's seeds, as far as all of them reach: (x, mean over seeds)."""

    variant: str
    points: list[tuple[float, MeanWithError]]


@dataclass(frozen=True)
class Comparison:
    """A reward over one axis. end: where all runs are compared. values: variant -> seed -> value there."""

    axis: str  # seconds or calls
    reward: str
    end: float
    values: dict[str, dict[int, float]]
    bands: list[VariantCurve]

    def mean(self, variant: str) -> MeanWithError | None:
        """The mean over seeds at the end, with its standard error; unknown, and given as 0, for a single seed."""
        return mean(list(self.values.get(variant, {}).values()))


def value_at(course: SeedCurve, x: float) -> float | None:
    """The value at x, interpolated linearly; None before the first point and after the last."""
    if not course or not course[0][0] <= x <= course[-1][0]:
        return None
    for (x0, y0), (x1, y1) in zip(course, course[1:], strict=False):
        if x0 <= x < x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return course[-1][1]


def mean_curve(variant: str, courses: Sequence[SeedCurve], more: Sequence[float] = ()) -> VariantCurve:
    """The mean of curves, from where all have begun to where the shortest ends, evenly spaced and at `more`."""
    low, high = max(c[0][0] for c in courses), min(c[-1][0] for c in courses)
    even = [low + (high - low) * i / (CURVE_POINTS - 1) for i in range(CURVE_POINTS)]
    points = []
    for x in sorted({*even, *(x for x in more if low <= x <= high)}):
        value = mean([value_at(course, x) for course in courses])
        points += [] if value is None else [(x, value)]
    return VariantCurve(variant, points)


def compare_reward(outcomes: Sequence[RunOutcome], axis: str, reward: str) -> Comparison | None:
    """The comparison of a reward over an axis; None where no run has recorded both."""
    courses = {(o.variant, o.seed): o.curve(axis, reward) for o in outcomes if o.problem is None}
    courses = {key: course for key, course in courses.items() if len(course) > 1}
    if not courses:
        return None
    end = min(course[-1][0] for course in courses.values())
    values: dict[str, dict[int, float]] = {}
    for (variant, seed), course in courses.items():
        value = value_at(course, end)
        if value is not None:
            values.setdefault(variant, {})[seed] = value
    grouped = _group_by_variant(courses)
    bands = [mean_curve(name, grouped[name], [end]) for name in variants_in_order(outcomes) if name in grouped]
    return Comparison(axis, reward, end, values, bands)


def _group_by_variant(courses: Mapping[tuple[str, int], SeedCurve]) -> dict[str, list[SeedCurve]]:
    grouped: dict[str, list[SeedCurve]] = {}
    for (variant, _), course in courses.items():
        grouped.setdefault(variant, []).append(course)
    return grouped


def evaluated_rewards(outcomes: Sequence[RunOutcome]) -> list[str]:
    """The rewards that were evaluated, trained ones first, in the recipes' order."""
    return list(dict.fromkeys(name for o in outcomes for mark in o.points for name in mark.rewards))
