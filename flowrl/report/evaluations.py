"""Held-out evaluations side by side: the same prompts and the same noise, before, between and after."""

from collections.abc import Iterable
from dataclasses import dataclass

from flowrl.report.numerals import Mean, mean
from flowrl.report.read import Evaluated, RunData
from flowrl.report.thumbnails import QUALITIES, Thumbnail, thumbnail

BUDGET = 6_500_000  # characters of pictures on a page
TIE = 1e-9  # scores that differ by less are equal


@dataclass(frozen=True)
class Shot:
    """One prompt at one evaluation: its scores, and its picture or text where it was kept.

    sound: the path of its sound in the run's folder, which the page lies in too.
    """

    iteration: int
    scores: dict[str, float | None]
    picture: Thumbnail | None
    text: str | None
    sound: str | None = None


@dataclass(frozen=True)
class Course:
    """One prompt over several evaluations, and by how much the trained reward changed from the first to the last."""

    prompt: str
    kind: str | None
    shots: list[Shot]
    change: float | None

    @property
    def direction(self) -> str:
        """up, down, same or unknown."""
        if self.change is None:
            return "unknown"
        return "same" if abs(self.change) < TIE else "up" if self.change > 0 else "down"


def total(scores: dict[str, float | None], weights: dict[str, float]) -> float | None:
    """The trained rewards as they count together; None where one of them is missing or could not be scored.

    What the run wrote itself knows of gates and of prompts that a reward is not asked about.
    """
    if "total" in scores and sum(1 for weight in weights.values() if weight) > 1:
        return scores["total"]
    parts = [(weight, scores.get(name)) for name, weight in weights.items() if weight]
    if not parts or any(value is None for _, value in parts):
        return None
    return sum(weight * value for weight, value in parts if value is not None)


def scores_of(evaluation: Evaluated, index: int) -> dict[str, float | None]:
    """reward -> score of one prompt."""
    return {name: values[index] if index < len(values) else None for name, values in evaluation.scores.items()}


def mean_total(evaluation: Evaluated, weights: dict[str, float]) -> Mean | None:
    """The mean over prompts of a weighted sum of rewards."""
    return mean([total(scores_of(evaluation, i), weights) for i in range(len(evaluation.prompts))])


def positions(evaluation: Evaluated) -> dict[str, int]:
    """Prompt id -> its index, of the first where several have one id."""
    found: dict[str, int] = {}
    for i, prompt in enumerate(evaluation.prompts):
        found.setdefault(prompt["id"] or str(i), i)
    return found


def paired_change(before: Evaluated, after: Evaluated, weights: dict[str, float]) -> Mean | None:
    """The mean change, prompt by prompt, of a weighted sum of rewards; its error is that of the differences."""
    there = positions(before)
    differences: list[float | None] = []
    for name, index in positions(after).items():
        if name in there:
            old, new = total(scores_of(before, there[name]), weights), total(scores_of(after, index), weights)
            differences.append(None if old is None or new is None else new - old)
    return mean(differences)


def by_kind(data: RunData) -> dict[str, dict[str, list[tuple[int, Mean]]]]:
    """kind -> reward -> (iteration, mean) of each evaluation; empty where prompts do not say their kind."""
    found: dict[str, dict[str, list[tuple[int, Mean]]]] = {}
    for evaluation in data.evaluations:
        kinds = [prompt["kind"] for prompt in evaluation.prompts]
        for kind in dict.fromkeys(kinds):
            for reward, values in evaluation.scores.items():
                part = mean([v for v, k in zip(values, kinds, strict=False) if k == kind])
                if kind is not None and part is not None:
                    found.setdefault(kind, {}).setdefault(reward, []).append((evaluation.iteration, part))
    return {kind: found[kind] for kind in sorted(found)}


def spread(items: list, number: int) -> list:
    """`number` of the items, evenly from the first to the last; all where there are no more."""
    if len(items) <= number or number < 2:
        return items[:number]
    return [items[round(i * (len(items) - 1) / (number - 1))] for i in range(number)]


@dataclass(frozen=True)
class Gallery:
    """before and after: pairs from the largest gain to the largest loss. over: some prompts at many evaluations.

    kept: how many prompts have samples that were kept.
    """

    pairs: list[Course]
    over: list[Course]
    kept: int


def gallery(data: RunData, *, pairs: int = 24, strips: int = 12, columns: int = 9) -> Gallery:
    """Samples to look at, an even choice from the best change to the worst, small enough for one page."""
    shown = [e for e in data.evaluations if e.pictures or e.texts]
    if not shown:
        return Gallery([], [], 0)
    ends = [shown[0], shown[-1]] if len(shown) > 1 else shown
    ordered = _ordered(ends, data.weights)
    chosen, followed = spread(ordered, pairs), spread(ordered, strips) if len(shown) > 2 else []
    between = spread(shown, columns)
    for side, quality in QUALITIES:
        large = [_course(data, ends, name, side, quality) for name in chosen]
        small = [_course(data, between, name, min(side, 144), quality) for name in followed]
        if _size([*large, *small]) <= BUDGET:
            break
    return Gallery(large, small, len(ordered))


def tally(before: Evaluated, after: Evaluated, weights: dict[str, float]) -> dict[str, int]:
    """How many prompts went up, stayed the same or went down in the trained reward."""
    there, counts = positions(before), {"up": 0, "same": 0, "down": 0}
    for name, index in positions(after).items():
        if name in there:
            old, new = total(scores_of(before, there[name]), weights), total(scores_of(after, index), weights)
            if old is not None and new is not None:
                counts["same" if abs(new - old) < TIE else "up" if new > old else "down"] += 1
    return counts


def _ordered(ends: list[Evaluated], weights: dict[str, float]) -> list[str]:
    """Ids of the prompts whose samples every one of these evaluations kept, the largest gain first."""
    kept = [{n for n, i in positions(e).items() if i < max(len(e.pictures), len(e.texts))} for e in ends]
    common = [name for name in positions(ends[0]) if all(name in k for k in kept)]
    first, last = (positions(ends[0]), positions(ends[-1]))
    changes = {n: _change(scores_of(ends[0], first[n]), scores_of(ends[-1], last[n]), weights) for n in common}
    return sorted(common, key=lambda n: -(changes[n] or 0.0))


def _change(before: dict[str, float | None], after: dict[str, float | None], weights: dict[str, float]) -> float | None:
    old, new = total(before, weights), total(after, weights)
    return None if old is None or new is None else new - old


def _course(data: RunData, evaluations: Iterable[Evaluated], name: str, side: int, quality: int) -> Course:
    shots, prompt = [], {}
    for evaluation in evaluations:
        index = positions(evaluation).get(name)
        if index is None:
            continue
        prompt = evaluation.prompts[index]
        file = evaluation.pictures[index] if index < len(evaluation.pictures) else None
        picture = None if file is None else thumbnail(data.folder, file, side, quality)
        text = evaluation.texts[index] if index < len(evaluation.texts) else None
        sound = evaluation.sounds[index] if index < len(evaluation.sounds) else None
        shots.append(Shot(evaluation.iteration, scores_of(evaluation, index), picture, text, sound))
    change = _change(shots[0].scores, shots[-1].scores, data.weights) if len(shots) > 1 else None
    return Course(str(prompt.get("text") or name), prompt.get("kind"), shots, change)


def _size(courses: list[Course]) -> int:
    return sum(len(s.picture.uri) for course in courses for s in course.shots if s.picture)
