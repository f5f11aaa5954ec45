"""Courses of several runs on one axis: linear between evaluations, mean and standard error over seeds.

No run is extended beyond its last evaluation. What is compared at the end is compared where the shortest run ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flowrl.compare.collect import Outcome, order
from flowrl.report.numerals import MeanWithError, mean

Course = Sequence[tuple[float, float]]  # (x, value), x rising
DRAWN = 60  # points of a mean course


@dataclass(frozen=True)
class Band:
    """The mean course of a variant's seeds, as far as all of them reach: (x, mean over seeds)."""

    variant: str
    points: list[tuple[float, MeanWithError]]


@dataclass(frozen=True)
class Comparison:
    """A reward over one axis. end: where all runs are compared. values: variant -> seed -> value there."""

    axis: str  # seconds or calls
    reward: str
    end: float
    values: dict[str, dict[int, float]]
    bands: list[Band]

    def mean(self, variant: str) -> MeanWithError | None:
        """The mean over seeds at the end, with its standard error; that of one seed is not known and given as 0."""
        return mean(list(self.values.get(variant, {}).values()))


def value_at(course: Course, x: float) -> float | None:
    """The value at x, linear between its neighbours; None before the first and after the last."""
    if not course or not course[0][0] <= x <= course[-1][0]:
        return None
    for (x0, y0), (x1, y1) in zip(course, course[1:], strict=False):
        if x0 <= x < x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return course[-1][1]


def band(variant: str, courses: Sequence[Course], more: Sequence[float] = ()) -> Band:
    """The mean of courses from where all begin to where the shortest ends, at even distances and at `more`."""
    low, high = max(c[0][0] for c in courses), min(c[-1][0] for c in courses)
    even = [low + (high - low) * i / (DRAWN - 1) for i in range(DRAWN)]
    points = []
    for x in sorted({*even, *(x for x in more if low <= x <= high)}):
        found = mean([value_at(course, x) for course in courses])
        points += [] if found is None else [(x, found)]
    return Band(variant, points)


def compare(outcomes: Sequence[Outcome], axis: str, reward: str) -> Comparison | None:
    """The comparison of a reward over an axis; None where no run has recorded both."""
    courses = {(o.variant, o.seed): o.course(axis, reward) for o in outcomes if o.problem is None}
    courses = {key: course for key, course in courses.items() if len(course) > 1}
    if not courses:
        return None
    end = min(course[-1][0] for course in courses.values())
    values: dict[str, dict[int, float]] = {}
    for (variant, seed), course in courses.items():
        found = value_at(course, end)
        if found is not None:
            values.setdefault(variant, {})[seed] = found
    grouped = _grouped(courses)
    bands = [band(name, grouped[name], [end]) for name in order(outcomes) if name in grouped]
    return Comparison(axis, reward, end, values, bands)


def _grouped(courses: Mapping[tuple[str, int], Course]) -> dict[str, list[Course]]:
    grouped: dict[str, list[Course]] = {}
    for (variant, _), course in courses.items():
        grouped.setdefault(variant, []).append(course)
    return grouped


def rewards(outcomes: Sequence[Outcome]) -> list[str]:
    """The rewards that were evaluated: what is trained first, then the others as the recipes list them."""
    return list(dict.fromkeys(name for o in outcomes for mark in o.marks for name in mark.rewards))
