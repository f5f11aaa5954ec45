"""Which value a scan recommends, and why.

The rule. A group teaches by the spread of its rewards, and the samples it teaches from should still be samples of the
model. So: of the values whose quality loss is within the tolerance, the one with the largest spread within groups.
The loss is what samples score less than the ODE's samples from the same initial noise; the tolerance is a share of the
standard deviation of the ODE samples' rewards, which no unit and no offset of a reward changes.

Values are compared prompt by prompt at equal seeds. A difference below two of its standard errors tells nothing: of the
values whose spread is not told from the largest, those that are shown to lose more than another of them drop out. If
more than one is left, nothing is recommended, and the text says so.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from flowrl.scan.measures import SHOWN, Row, difference, shown

TOLERANCE = 0.2  # standard deviations of the ODE's reward: a small effect by Cohen's scale
MOST_PROMPTS = 10_000  # that are still worth proposing


@dataclass(frozen=True)
class Advice:
    """label: the recommended value, None where the data name none. open: the values they do not tell apart.

    limit: the largest loss that the tolerance admits. verdicts: of every value, in a few words.
    """

    label: str | None
    text: str
    open: tuple[str, ...]
    limit: float
    verdicts: dict[str, str]


def advise(rows: Sequence[Row], tolerance: float = TOLERANCE, reference: str = "the ODE") -> Advice:
    """The recommendation among measured values, by the rule of this module; reference: what samples are held against.

    tolerance is the loss that is admitted, in standard deviations of the reference samples' rewards.
    """
    limit = tolerance * statistics.fmean(row.deviation for row in rows)
    within = f"{limit:.3f} ({tolerance:g} standard deviations of {reference}'s reward)"
    words = {row.label: _verdict(row, limit) for row in rows}
    scored = [row for row in rows if row.spread.number and row.quality.number]
    if not any(row.spread.value > 0 for row in scored):
        text = "No group has any spread of rewards at any of these values: there is nothing to learn from."
        return Advice(None, text + " Look at the reward, or scan wider.", (), limit, words)
    admitted = [row for row in scored if -row.quality.value <= limit]
    if not admitted:
        least = max(scored, key=lambda row: row.quality.value)
        text = (
            f"Every value loses more than {within}; the least is at {least.label}, {_loss(least)}. Scan milder "
            "values, or raise --tolerance."
        )
        return Advice(None, text, (), limit, words)
    leader = max(admitted, key=lambda row: row.spread.value)
    tied = [row for row in admitted if row is leader or not shown(difference(leader.spreads, row.spreads))]
    left = [row for row in tied if not any(_loses_more(row, other) for other in tied)]
    words |= {row.label: "not told from the largest spread" for row in tied} | {leader.label: "largest spread"}
    if len(left) > 1:
        return Advice(None, _undecided(left, leader, within), tuple(row.label for row in left), limit, words)
    text = _reason(left[0], leader, within, len(admitted))
    if dropped := [row.label for row in tied if row is not left[0] and row is not leader]:
        text += f" {_listed(dropped)}: as much spread, as far as the data tell, and a larger loss."
    text += _caveats(left[0], rows, limit)
    return Advice(left[0].label, text, (), limit, words | {left[0].label: "recommended"})


def _loses_more(row: Row, other: Row) -> bool:
    gap = difference(other.qualities, row.qualities)
    return gap.value > 0 and shown(gap)


def _reason(row: Row, leader: Row, within: str, admitted: int) -> str:
    if row is leader and admitted == 1:
        return f"{row.label} is the only value that loses no more than {within}: it has {_loss(row)}."
    if row is leader:
        return (
            f"{row.label} has the largest spread within groups, {row.spread}, of the {admitted} values that lose no "
            f"more than {within}; it has {_loss(row)}."
        )
    return (
        f"{row.label}: its spread within groups, {row.spread}, is not told from the largest ({leader.spread} at "
        f"{leader.label}), and it keeps more quality, {_loss(row)} against {_loss(leader)}; the limit is {within}."
    )


def _caveats(row: Row, rows: Sequence[Row], limit: float) -> str:
    """What the reader has to know before believing it."""
    told = ""
    if -row.quality.value + SHOWN * row.quality.error > limit:
        told += " The error leaves room for a loss beyond that limit: more --prompts would tell."
    numbers = [number for r in rows if (number := as_number(r.label)) is not None]
    value = as_number(row.label)
    if value is not None and len(numbers) == len(rows) > 2 and value in (min(numbers), max(numbers)):
        told += " It is the last value of the scan on that side: scan further."
    return told


def _undecided(left: Sequence[Row], leader: Row, within: str) -> str:
    names = _listed([row.label for row in left])
    text = f"The data do not tell {names} apart: neither spread nor loss differs by more than {SHOWN:g} standard errors"
    text += f", and each loses no more than {within}."
    needed = [n for row in left if row is not leader and (n := _needed(leader, row)) is not None]
    if needed and max(needed) <= MOST_PROMPTS:
        return text + f" If the differences are as large as they look, about --prompts {max(needed)} would tell."
    return text + " Any of them will do; more --prompts or values further apart may tell."


def _needed(leader: Row, row: Row) -> int | None:
    """Prompts at which the difference in spread, if it is what it seems, would be shown; rounded up to two digits."""
    gap = difference(leader.spreads, row.spreads)
    if gap.value == 0 or gap.number < 2:
        return None
    exact = gap.number * (SHOWN * gap.error / gap.value) ** 2
    unit = 10 ** max(0, math.floor(math.log10(max(exact, 1))) - 1)
    return max(math.ceil(exact / unit) * unit, gap.number + 1)


def _verdict(row: Row, limit: float) -> str:
    """Where a value's loss lies, as far as its error tells."""
    loss, room = -row.quality.value, SHOWN * row.quality.error
    if not row.quality.number:
        return "could not be scored"
    if loss > limit:
        return "loses too much" if loss - room > limit else "probably loses too much"
    return "within the tolerance" if loss + room <= limit else "probably within the tolerance"


def _loss(row: Row) -> str:
    value = row.quality.value
    return f"a {'gain' if value > 0 else 'loss'} of {abs(value):.3f} ± {row.quality.error:.3f}"


def as_number(label: str) -> float | None:
    """A label as a number, where it is one."""
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
