"""A comparison as numbers, shared by the page, the plots, the tables and the Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flowrl.compare import curves, verdict
from flowrl.compare.collect import PHASES, RunOutcome, variants_in_order
from flowrl.compare.curves import Comparison
from flowrl.kinds import kind_of
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
class VariantRow:
    """A variant: the number of compared runs, and means over their seeds.

    held: (axis, reward) -> held-out mean where the shortest run ends.
    """

    variant: str
    runs: int
    held: dict[tuple[str, str], MeanWithError]
    iterations: MeanWithError | None
    seconds: dict[str, MeanWithError]  # of an iteration, by phase
    calls: MeanWithError | None  # of an iteration
    drift: dict[str, MeanWithError]

    @property
    def iteration(self) -> float:
        """Seconds per iteration."""
        return sum(m.value for m in self.seconds.values())


@dataclass(frozen=True)
class Overview:
    """A comparison. unit: of a call, row or token. witnesses: rewards that no run trained on."""

    title: str
    outcomes: list[RunOutcome]
    rewards: list[str]
    comparisons: list[Comparison]
    rows: list[VariantRow]
    unit: str
    witnesses: frozenset[str]
    notes: list[str] = field(default_factory=list)

    def comparison(self, axis: str, reward: str) -> Comparison | None:
        """The comparison of a reward over an axis; None if it was not recorded."""
        return next((c for c in self.comparisons if (c.axis, c.reward) == (axis, reward)), None)

    @property
    def failures(self) -> list[RunOutcome]:
        """The runs that are not compared."""
        return [o for o in self.outcomes if o.problem is not None]


def make_overview(title: str, outcomes: Sequence[RunOutcome], drifts: Drifts, notes: Sequence[str] = ()) -> Overview:
    """The comparison of these runs; drifts: folder -> drift measures."""
    names = curves.evaluated_rewards(outcomes)
    comparisons = [
        c for name in names for axis in AXES if (c := curves.compare_reward(outcomes, axis, name)) is not None
    ]
    compared = [o for o in outcomes if o.problem is None and o.data is not None]
    weights = [o.data.weights for o in compared if o.data is not None]
    witnesses = frozenset(n for n in names if any(n in w for w in weights) and not any(w.get(n) for w in weights))
    rows = [_row(name, compared, comparisons, drifts) for name in variants_in_order(outcomes)]
    units = [kind_of(o.data.recipe).words.forward for o in compared if o.data is not None]
    unit = next((unit for unit in units if unit != "row"), "row")
    return Overview(title, list(outcomes), names, comparisons, rows, unit, witnesses, list(notes))


def _row(variant: str, compared: Sequence[RunOutcome], comparisons: Sequence[Comparison], drifts: Drifts) -> VariantRow:
    mine = [o for o in compared if o.variant == variant]
    heldout = {(c.axis, c.reward): m for c in comparisons if (m := c.mean(variant)) is not None}
    seconds = {p: m for p in PHASES if (m := mean([o.median(f"time_{p}") for o in mine])) is not None}
    drift = {n: m for n in DRIFT if (m := mean([drifts.get(o.folder, {}).get(n) for o in mine])) is not None}
    iterations = mean([float(o.data.last) if o.data else None for o in mine])
    return VariantRow(variant, len(mine), heldout, iterations, seconds, mean(list(map(_calls, mine))), drift)


def _calls(one: RunOutcome) -> float | None:
    """Calls per iteration, mean over the run."""
    last = one.points[-1]
    return None if last.calls is None or not last.iteration else last.calls / last.iteration


def axis_text(axis: str, value: float, unit: str) -> str:
    """A position on an axis in words."""
    return f"{format_duration(value)} of training" if axis == "seconds" else f"{value:,.0f} {unit}-forwards"


def format_mean(value: MeanWithError | None, *like: MeanWithError, short: bool = False) -> str:
    """A mean with its error, if there are several seeds; a dash for None. like: the means of the same column."""
    if value is None:
        return "\N{EN DASH}"
    if short:
        return _significant_digits(value.value, 3) + (
            f" ±\N{NO-BREAK SPACE}{_significant_digits(value.error, 1)}" if value.number > 1 else ""
        )
    places = min(4, decimals_for(value, *like))
    return format_with_error(value, places) if value.number > 1 else format_number(value.value, places)


def _significant_digits(value: float, number: int) -> str:
    """`number` significant digits, with an exponent only where that is shorter."""
    return format_compact(float(f"{value:.{number}g}"))


def pair_sentences(overview: Overview, axis: str, reward: str) -> list[str]:
    """One sentence for each pair of variants."""
    comparison = overview.comparison(axis, reward)
    return [] if comparison is None else [d.sentence() for d in verdict.differences(comparison)]


def headline(overview: Overview, axis: str, reward: str) -> str:
    """Who is ahead in a reward, where all runs are compared."""
    comparison = overview.comparison(axis, reward)
    if comparison is None:
        return f"{reward}: not recorded over {axis}."
    head = f"{reward} at {axis_text(axis, comparison.end, overview.unit)}"
    return f"{head}: {verdict.headline(comparison)}"
