"""A comparison as numbers: what the page, the plots, the tables and the Markdown all show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flowrl.compare import curves, verdict
from flowrl.compare.collect import PHASES, Outcome, order
from flowrl.compare.curves import Comparison
from flowrl.report.numerals import (
    MeanWithError,
    decimals_for,
    format_compact,
    format_duration,
    format_number,
    format_with_error,
    mean,
)

AXES = ("seconds", "calls")
DRIFT = ("kl", "distance", "diversity_base", "diversity")
Drifts = Mapping[Path, Mapping[str, float | None]]


@dataclass(frozen=True)
class Row:
    """A variant: how many runs are compared, and means over their seeds. held: (axis, reward) -> mean where all end."""

    variant: str
    runs: int
    held: dict[tuple[str, str], MeanWithError]
    iterations: MeanWithError | None
    seconds: dict[str, MeanWithError]  # of an iteration, by phase
    calls: MeanWithError | None  # of an iteration
    drift: dict[str, MeanWithError]

    @property
    def iteration(self) -> float:
        """Seconds of an iteration."""
        return sum(m.value for m in self.seconds.values())


@dataclass(frozen=True)
class Overview:
    """A comparison. unit: what a call is, rows or tokens. witnesses: rewards that no run trained on."""

    title: str
    outcomes: list[Outcome]
    rewards: list[str]
    comparisons: list[Comparison]
    rows: list[Row]
    unit: str
    witnesses: frozenset[str]
    notes: list[str] = field(default_factory=list)

    def comparison(self, axis: str, reward: str) -> Comparison | None:
        """Of a reward over an axis, where it was recorded."""
        return next((c for c in self.comparisons if (c.axis, c.reward) == (axis, reward)), None)

    @property
    def failures(self) -> list[Outcome]:
        """The runs that are not compared."""
        return [o for o in self.outcomes if o.problem is not None]


def overview(title: str, outcomes: Sequence[Outcome], drifts: Drifts, notes: Sequence[str] = ()) -> Overview:
    """All that is said of these runs."""
    names = curves.rewards(outcomes)
    found = [c for name in names for axis in AXES if (c := curves.compare(outcomes, axis, name)) is not None]
    compared = [o for o in outcomes if o.problem is None and o.data is not None]
    weights = [o.data.weights for o in compared if o.data is not None]
    witnesses = frozenset(n for n in names if any(n in w for w in weights) and not any(w.get(n) for w in weights))
    language = any(o.data is not None and o.data.recipe.get("generation") for o in compared)
    rows = [_row(name, compared, found, drifts) for name in order(outcomes)]
    unit = "token" if language else "row"
    return Overview(title, list(outcomes), names, found, rows, unit, witnesses, list(notes))


def _row(variant: str, compared: Sequence[Outcome], found: Sequence[Comparison], drifts: Drifts) -> Row:
    mine = [o for o in compared if o.variant == variant]
    held = {(c.axis, c.reward): m for c in found if (m := c.mean(variant)) is not None}
    seconds = {p: m for p in PHASES if (m := mean([o.each(f"time_{p}") for o in mine])) is not None}
    drift = {n: m for n in DRIFT if (m := mean([drifts.get(o.folder, {}).get(n) for o in mine])) is not None}
    iterations = mean([float(o.data.last) if o.data else None for o in mine])
    return Row(variant, len(mine), held, iterations, seconds, mean(list(map(_calls, mine))), drift)


def _calls(one: Outcome) -> float | None:
    """Calls of an iteration, mean over the run."""
    last = one.marks[-1]
    return None if last.calls is None or not last.iteration else last.calls / last.iteration


def place(axis: str, value: float, unit: str) -> str:
    """A value of an axis in words."""
    return f"{format_duration(value)} of training" if axis == "seconds" else f"{value:,.0f} {unit}-forwards"


def told(value: MeanWithError | None, *like: MeanWithError, short: bool = False) -> str:
    """A mean with its error, without one for one seed; a dash where there is none. like: means of the same column."""
    if value is None:
        return "\N{EN DASH}"
    if short:
        return _digits(value.value, 3) + (f" ±\N{NO-BREAK SPACE}{_digits(value.error, 1)}" if value.number > 1 else "")
    places = min(4, decimals_for(value, *like))
    return format_with_error(value, places) if value.number > 1 else format_number(value.value, places)


def _digits(value: float, number: int) -> str:
    """So many significant digits, without an exponent where it would be no shorter."""
    return format_compact(float(f"{value:.{number}g}"))


def sentences(of: Overview, axis: str, reward: str) -> list[str]:
    """What can be said of each pair of variants."""
    found = of.comparison(axis, reward)
    return [] if found is None else [d.sentence() for d in verdict.differences(found)]


def headline(of: Overview, axis: str, reward: str) -> str:
    """Who is ahead in a reward, where all runs are compared."""
    found = of.comparison(axis, reward)
    if found is None:
        return f"{reward}: not recorded over {axis}."
    head = f"{reward} at {place(axis, found.end, of.unit)}"
    return f"{head}: {verdict.headline(found)}"
