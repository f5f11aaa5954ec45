"""Held-out evaluations side by side: the same prompts and the same noise, before, between and after."""

from collections.abc import Iterable
from dataclasses import dataclass

from flowrl.report.numerals import MeanWithError, mean
from flowrl.report.read import EvaluationRecord, RunData
from flowrl.report.thumbnails import QUALITIES, Thumbnail, thumbnail

BUDGET = 6_500_000  # characters of pictures on a page
INSET = 128  # pixels of a side of pictures that are read, not drawn
TIE = 1e-9  # scores that differ by less are equal


@dataclass(frozen=True)
class HeldoutSample:
    """One prompt at one evaluation: its scores, and its picture or text where it was kept.

    sound: the path of its sound in the run's folder, which the page lies in too. talk: of a conversation each part's
    text with its pictures, None for one that cannot be read; empty where there was one turn.
    """

    iteration: int
    scores: dict[str, float | None]
    picture: Thumbnail | None
    text: str | None
    sound: str | None = None
    talk: tuple[tuple[str, list[Thumbnail | None]], ...] = ()


@dataclass(frozen=True)
class PromptFile:
    """A file of a prompt: its kind, its name, and the picture where it is one that was kept."""

    kind: str
    name: str
    picture: Thumbnail | None


@dataclass(frozen=True)
class PromptHistory:
    """One prompt over several evaluations, and by how much the trained reward changed from the first to the last."""

    prompt: str
    kind: str | None
    shots: list[HeldoutSample]
    change: float | None
    media: tuple[PromptFile, ...] = ()

    @property
    def direction(self) -> str:
        """up, down, same or unknown."""
        if self.change is None:
            return "unknown"
        return "same" if abs(self.change) < TIE else "up" if self.change > 0 else "down"


def trained_total(scores: dict[str, float | None], weights: dict[str, float]) -> float | None:
    """The weighted sum of the trained rewards; None where one of them is missing or could not be scored.

    A total that the run itself wrote is preferred: it accounts for gates and for rewards that skip some prompts.
    """
    if "total" in scores and sum(1 for weight in weights.values() if weight) > 1:
        return scores["total"]
    parts = [(weight, scores.get(name)) for name, weight in weights.items() if weight]
    if not parts or any(value is None for _, value in parts):
        return None
    return sum(weight * value for weight, value in parts if value is not None)


def scores_of(evaluation: EvaluationRecord, index: int) -> dict[str, float | None]:
    """reward -> score of one prompt."""
    return {name: values[index] if index < len(values) else None for name, values in evaluation.scores.items()}


def mean_total(evaluation: EvaluationRecord, weights: dict[str, float]) -> MeanWithError | None:
    """The mean over prompts of a weighted sum of rewards."""
    return mean([trained_total(scores_of(evaluation, i), weights) for i in range(len(evaluation.prompts))])


def index_by_id(evaluation: EvaluationRecord) -> dict[str, int]:
    """Prompt id -> its index, of the first where several have one id."""
    index: dict[str, int] = {}
    for i, prompt in enumerate(evaluation.prompts):
        index.setdefault(prompt["id"] or str(i), i)
    return index


def paired_change(before: EvaluationRecord, after: EvaluationRecord, weights: dict[str, float]) -> MeanWithError | None:
    """The mean change, prompt by prompt, of a weighted sum of rewards; its error is that of the differences."""
    before_index = index_by_id(before)
    differences: list[float | None] = []
    for name, index in index_by_id(after).items():
        if name in before_index:
            old, new = (
                trained_total(scores_of(before, before_index[name]), weights),
                trained_total(scores_of(after, index), weights),
            )
            differences.append(None if old is None or new is None else new - old)
    return mean(differences)


def means_by_kind(data: RunData) -> dict[str, dict[str, list[tuple[int, MeanWithError]]]]:
    """kind -> reward -> (iteration, mean) of each evaluation; empty where prompts do not say their kind."""
    means: dict[str, dict[str, list[tuple[int, MeanWithError]]]] = {}
    for evaluation in data.evaluations:
        kinds = [prompt["kind"] for prompt in evaluation.prompts]
        for kind in dict.fromkeys(kinds):
            for reward, values in evaluation.scores.items():
                part = mean([v for v, k in zip(values, kinds, strict=False) if k == kind])
                if kind is not None and part is not None:
                    means.setdefault(kind, {}).setdefault(reward, []).append((evaluation.iteration, part))
    return {kind: means[kind] for kind in sorted(means)}


def evenly_spaced(items: list, number: int) -> list:
    """`number` evenly spaced items, the first and the last included; all of them if there are no more."""
    if len(items) <= number or number < 2:
        return items[:number]
    return [items[round(i * (len(items) - 1) / (number - 1))] for i in range(number)]


@dataclass(frozen=True)
class Gallery:
    """pairs: before and after, from the largest gain to the largest loss. over: a few prompts at many evaluations.

    kept: the number of prompts whose samples were kept.
    """

    pairs: list[PromptHistory]
    over: list[PromptHistory]
    kept: int


def gallery(data: RunData, *, pairs: int = 24, strips: int = 12, columns: int = 9) -> Gallery:
    """Samples to look at, chosen evenly from the best change to the worst, small enough for one page."""
    kept = [e for e in data.evaluations if e.pictures or e.texts]
    if not kept:
        return Gallery([], [], 0)
    ends = [kept[0], kept[-1]] if len(kept) > 1 else kept
    ordered = _ids_by_gain(ends, data.weights)
    pair_ids, strip_ids = evenly_spaced(ordered, pairs), evenly_spaced(ordered, strips) if len(kept) > 2 else []
    between = evenly_spaced(kept, columns)
    for side, quality in QUALITIES:
        large = [_prompt_history(data, ends, name, side, quality) for name in pair_ids]
        small = [_prompt_history(data, between, name, min(side, 144), quality) for name in strip_ids]
        if _picture_size([*large, *small]) <= BUDGET:
            break
    return Gallery(large, small, len(ordered))


def count_directions(before: EvaluationRecord, after: EvaluationRecord, weights: dict[str, float]) -> dict[str, int]:
    """The number of prompts whose trained reward went up, stayed the same or went down."""
    before_index, counts = index_by_id(before), {"up": 0, "same": 0, "down": 0}
    for name, index in index_by_id(after).items():
        if name in before_index:
            old, new = (
                trained_total(scores_of(before, before_index[name]), weights),
                trained_total(scores_of(after, index), weights),
            )
            if old is not None and new is not None:
                counts["same" if abs(new - old) < TIE else "up" if new > old else "down"] += 1
    return counts


def _ids_by_gain(ends: list[EvaluationRecord], weights: dict[str, float]) -> list[str]:
    """Ids of the prompts whose samples all these evaluations kept, the largest gain first."""
    kept = [{n for n, i in index_by_id(e).items() if i < max(len(e.pictures), len(e.texts))} for e in ends]
    common = [name for name in index_by_id(ends[0]) if all(name in k for k in kept)]
    first, last = (index_by_id(ends[0]), index_by_id(ends[-1]))
    changes = {n: _change(scores_of(ends[0], first[n]), scores_of(ends[-1], last[n]), weights) for n in common}
    return sorted(common, key=lambda n: -(changes[n] or 0.0))


def _change(before: dict[str, float | None], after: dict[str, float | None], weights: dict[str, float]) -> float | None:
    old, new = trained_total(before, weights), trained_total(after, weights)
    return None if old is None or new is None else new - old


def _prompt_history(
    data: RunData, evaluations: Iterable[EvaluationRecord], name: str, side: int, quality: int
) -> PromptHistory:
    shots, prompt, media = [], {}, list[dict[str, str]]()
    inset = min(side, INSET)
    for evaluation in evaluations:
        index = index_by_id(evaluation).get(name)
        if index is None:
            continue
        prompt = evaluation.prompts[index]
        file = evaluation.pictures[index] if index < len(evaluation.pictures) else None
        picture = None if file is None else thumbnail(data.folder, file, side, quality)
        text = evaluation.texts[index] if index < len(evaluation.texts) else None
        sound = evaluation.sounds[index] if index < len(evaluation.sounds) else None
        parts = evaluation.talks[index] if index < len(evaluation.talks) else []
        talk = tuple((words, [_inset(data, path, inset, quality) for path in paths]) for words, paths in parts)
        shots.append(HeldoutSample(evaluation.iteration, scores_of(evaluation, index), picture, text, sound, talk))
        media = evaluation.media[index] if index < len(evaluation.media) else media
    change = _change(shots[0].scores, shots[-1].scores, data.weights) if len(shots) > 1 else None
    files = tuple(
        PromptFile(of.get("kind", ""), of.get("name", ""), _inset(data, of.get("path"), inset, quality)) for of in media
    )
    return PromptHistory(str(prompt.get("text") or name), prompt.get("kind"), shots, change, files)


def _inset(data: RunData, path: str | None, side: int, quality: int) -> Thumbnail | None:
    return None if path is None else thumbnail(data.folder, path, side, quality)


def _picture_size(courses: list[PromptHistory]) -> int:
    found = [s.picture for course in courses for s in course.shots]
    found += [file.picture for course in courses for file in course.media]
    found += [picture for course in courses for s in course.shots for _, seen in s.talk for picture in seen]
    return sum(len(picture.uri) for picture in found if picture)
