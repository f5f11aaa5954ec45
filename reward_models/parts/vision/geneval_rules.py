"""GenEval's rules (arXiv 2310.11513): does a picture hold the objects, colours and places that its prompt asks for?

Pure functions of a detector's results: a mapping from class to its `Detection`s, most confident first. Published rules
are kept: `official` is the benchmark's accuracy (djghosh13/geneval), `strict_compatible` and `partial_compatible` are
the two rewards that Flow-GRPO trains on (yifan123/reward-server). `strict` and `partial` are ours. They differ from the
published pair in that they count `exclude`, that a wrong place earns nothing (published: the clause still gets a
trailing 1), that nothing falls below 0 (published: -6 for 16 cats of 2), and that each thing requested is one term,
whatever was detected. partial is 1 exactly where strict is.

Clauses are independent, as in the benchmark: two clauses of one class each see all of its objects.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flowrl.untyped import JSON

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
POSITION_THRESHOLD = 0.1
SHAPE = "include: [{class, count, color?, position?: [relation, index]}], exclude?: [{class, count}], tag?"


@dataclass(frozen=True)
class Detection:
    """An object: box (x1, y1, x2, y2) in pixels, y downwards, confidence, and its colour if it was requested."""

    box: tuple[float, float, float, float]
    score: float
    colour: str | None = None


@dataclass(frozen=True)
class Clause:
    """`count` objects of `kind`, all in `colour`, each in `relation` to each object of the clause number `target`."""

    kind: str
    count: int
    colour: str | None = None
    relation: str | None = None
    target: int = 0


@dataclass(frozen=True)
class Task:
    """What a prompt asks for. counting: it has the tag for which only the most confident detections count."""

    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()
    counting: bool = False

    def kinds(self) -> set[str]:
        """Every class that a clause names."""
        return {clause.kind for clause in (*self.include, *self.exclude)}

    def coloured(self) -> set[str]:
        """The classes whose objects need a colour."""
        return {clause.kind for clause in self.include if clause.colour is not None}


Objects = Mapping[str, Sequence[Detection]]


def task(meta: Mapping[str, JSON], text: str) -> Task:
    """The task in a prompt's meta (a line of evaluation_metadata.jsonl). Raises ValueError naming the prompt."""
    try:
        include = tuple(_clause(clause) for clause in meta["include"])
        exclude = tuple(_clause(clause) for clause in meta.get("exclude") or ())
    except (KeyError, TypeError, ValueError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"prompt {text!r} has no GenEval task ({said}); accepted in its meta: {SHAPE}") from None
    if not include:
        raise ValueError(f"prompt {text!r} asks for no object; accepted is at least one clause in include")
    for number, clause in enumerate(include):
        if clause.relation is not None and not 0 <= clause.target < number:
            fault = f"clause {number} of include stands {clause.relation} clause {clause.target}"
            raise ValueError(f"prompt {text!r}: {fault}; accepted is the number of an earlier clause, from 0")
    return Task(include, exclude, counting=meta.get("tag") == "counting")


def _clause(given: Mapping[str, JSON]) -> Clause:
    kind, count, colour = given["class"], given["count"], given.get("color")
    relation, target = given.get("position") or (None, 0)
    if not isinstance(kind, str) or not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"class {kind!r}, count {count!r}: a name and a whole number from 1 are accepted")
    if colour is not None and colour not in COLOURS:
        raise ValueError(f"color {colour!r}: accepted is {', '.join(COLOURS)}")
    if relation is not None and (relation not in RELATIONS or not isinstance(target, int)):
        raise ValueError(f"position {[relation, target]!r}: accepted is [{' | '.join(RELATIONS)}, number of a clause]")
    return Clause(kind, count, colour, relation, target)


def relations(a: Detection, b: Detection, threshold: float = POSITION_THRESHOLD) -> set[str]:
    """Where a is as seen from b: at most two of RELATIONS, none if the boxes are nearly concentric.

    The offset of the centres, shortened on each axis by threshold * (extent of a + extent of b), has to exceed half of
    the offset's length.
    """
    offset = [(a.box[i] + a.box[i + 2] - b.box[i] - b.box[i + 2]) / 2 for i in (0, 1)]
    extent = [abs(a.box[i + 2] - a.box[i]) + abs(b.box[i + 2] - b.box[i]) for i in (0, 1)]
    rest = [math.copysign(max(abs(o) - threshold * e, 0.0), o) for o, e in zip(offset, extent, strict=True)]
    if max(map(abs, rest)) < 1e-3:
        return set()
    dx, dy = (r / math.hypot(*offset) for r in rest)
    directions = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in directions.items() if holds}


def official(objects: Objects, wanted: Task, threshold: float = POSITION_THRESHOLD) -> float:
    """1 if the benchmark calls the picture correct, else 0. Too many objects are no fault unless excluded.

    Colours and places are those of the `count` most confident objects.
    """
    groups: list[Sequence[Detection] | None] = []
    for clause in wanted.include:
        detected = objects.get(clause.kind, ())[: clause.count]
        right = len(detected) == clause.count and _count_of_colour(detected, clause) == clause.count
        groups.append(detected if right and _is_placed(detected, clause, groups, threshold) else None)
    return float(None not in groups and all(_exclusion_factor(objects, clause) == 1 for clause in wanted.exclude))


def strict(objects: Objects, wanted: Task, threshold: float = POSITION_THRESHOLD) -> float:
    """1 if counts are exact, all colours and places are right and nothing excluded is there, else 0."""
    return float(partial(objects, wanted, threshold) == 1)


def partial(objects: Objects, wanted: Task, threshold: float = POSITION_THRESHOLD) -> float:
    """The share of the request that is fulfilled, in [0, 1].

    The mean over terms: for each clause max(0, 1 - |count - detected| / count), then, if it asks for a colour or a
    place, the share of objects of that colour, and 1 for the right place. Those two are 0 if the count is wrong, and
    a place is 0 unless all else of its clause and of its target is right. Each exclude clause multiplies the mean by
    max(0, 1 - excess / count), excess being the number of objects too many.
    """
    terms = [term for each in _terms(objects, wanted, threshold) for term in each]
    return math.prod(
        (_exclusion_factor(objects, clause) for clause in wanted.exclude), start=math.fsum(terms) / len(terms)
    )


def strict_compatible(objects: Objects, wanted: Task, threshold: float = POSITION_THRESHOLD) -> float:
    """The published strict reward: as strict, but blind to exclude."""
    return float(all(term == 1 for each in _terms(objects, wanted, threshold) for term in each))


def partial_compatible(objects: Objects, wanted: Task, threshold: float = POSITION_THRESHOLD) -> float:
    """The published graded reward with its faults, which reaches from far below 0 to 1."""
    terms: list[float] = []
    groups: list[Sequence[Detection] | None] = []
    for clause in wanted.include:
        detected = objects.get(clause.kind, ())
        right = len(detected) == clause.count
        terms.append(1 - abs(clause.count - len(detected)) / clause.count)
        if not right and (clause.colour is not None or clause.relation is not None):
            terms.append(0.0)  # one term, even where both were asked for
        if right and clause.colour is not None:
            coloured = _count_of_colour(detected, clause)
            terms.append(coloured / clause.count)
            right = coloured == clause.count
        if right and clause.relation is not None:  # a clause of wrong colour gets no term for its place
            right = _is_placed(detected, clause, groups, threshold)
            terms += [] if right else [0.0]
            terms += [] if groups[clause.target] is None else [1.0]
        groups.append(detected if right else None)
    return sum(terms) / len(terms)


def _terms(objects: Objects, wanted: Task, threshold: float) -> list[list[float]]:
    """For each clause the terms of its count, colour and place, as far as requested; each in [0, 1]."""
    terms: list[list[float]] = []
    groups: list[Sequence[Detection] | None] = []
    for clause in wanted.include:
        detected = objects.get(clause.kind, ())
        exact = len(detected) == clause.count
        own = [max(0.0, 1 - abs(clause.count - len(detected)) / clause.count)]
        if clause.colour is not None:
            own.append(_count_of_colour(detected, clause) / clause.count if exact else 0.0)
        if clause.relation is not None:
            own.append(float(min(own) == 1 and _is_placed(detected, clause, groups, threshold)))
        terms.append(own)
        groups.append(detected if min(own) == 1 else None)
    return terms


def _count_of_colour(detected: Sequence[Detection], clause: Clause) -> int:
    """How many have the requested colour; all if none is requested."""
    return sum(clause.colour is None or one.colour == clause.colour for one in detected)


def _is_placed(
    detected: Sequence[Detection], clause: Clause, groups: Sequence[Sequence[Detection] | None], threshold: float
) -> bool:
    """Whether each object is in the requested relation to each of its target, which must itself be right."""
    if clause.relation is None:
        return True
    target = groups[clause.target]
    return target is not None and all(clause.relation in relations(a, b, threshold) for a in detected for b in target)


def _exclusion_factor(objects: Objects, clause: Clause) -> float:
    """1 if fewer than `count` excluded objects are there, falling to 0 with each one too many."""
    excess = max(0, len(objects.get(clause.kind, ())) - clause.count + 1)
    return max(0.0, 1 - excess / clause.count)
