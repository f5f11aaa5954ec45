"""Which value a scan recommends, and why.

The rule. Training learns from the spread of rewards within a group, and the samples of the group should still be
samples of the model. So, among the values whose quality loss is within the tolerance, take the one with the largest
spread within groups. The loss is how much lower samples score than the ODE's samples from the same initial noise; the
tolerance is a share of the standard deviation of the ODE samples' rewards, so no unit or offset of a reward changes it.

Values are compared prompt by prompt at equal seeds. A difference below two of its standard errors is not significant:
of the values whose spread does not differ significantly from the largest, those with a significantly larger loss than
another of them drop out. If more than one is left, nothing is recommended, and the text says so.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from flowrl.scan.measures import MIN_STANDARD_ERRORS, ValueMeasures, is_significant, mean_difference

DEFAULT_TOLERANCE = 0.2  # standard deviations of the ODE's reward: a small effect by Cohen's scale
MOST_PROMPTS = 10_000  # the most that are worth proposing


@dataclass(frozen=True)
class Advice:
    """label: the recommended value, or None. open: the values that the data cannot tell apart.

    limit: the largest loss that the tolerance allows. verdicts: of every value, in a few words.
    """

    label: str | None
    text: str
    open: tuple[str, ...]
    limit: float
    verdicts: dict[str, str]


def advise(rows: Sequence[ValueMeasures], tolerance: float = DEFAULT_TOLERANCE, reference: str = "the ODE") -> Advice:
    """The recommendation among measured values, by the rule of this module.

    tolerance: the largest allowed loss, in standard deviations of the reference samples' rewards. reference: the name
    of what samples are compared with.
    """
    limit = tolerance * statistics.fmean(row.deviation for row in rows)
    within = f"{limit:.3f} ({tolerance:g} standard deviations of {reference}'s reward)"
    words = {row.label: _verdict(row, limit) for row in rows}
    scored = [row for row in rows if row.spread.number and row.quality.number]
    if not any(row.spread.value > 0 for row in scored):
        text = "No group has any spread of rewards at any of these values, so there is nothing to learn from."
        return Advice(None, text + " Check the reward, or scan a wider range.", (), limit, words)
    admitted = [row for row in scored if -row.quality.value <= limit]
    if not admitted:
        least = max(scored, key=lambda row: row.quality.value)
        text = (
            f"Every value loses more than {within}; the smallest loss is at {least.label}, {_loss_text(least)}. Scan "
            "milder values, or raise --tolerance."
        )
        return Advice(None, text, (), limit, words)
    leader = max(admitted, key=lambda row: row.spread.value)
    tied = [
        row for row in admitted if row is leader or not is_significant(mean_difference(leader.spreads, row.spreads))
    ]
    left = [row for row in tied if not any(_loses_more(row, other) for other in tied)]
    words |= {row.label: "spread not below the largest" for row in tied} | {leader.label: "largest spread"}
    if len(left) > 1:
        return Advice(None, _undecided_text(left, leader, within), tuple(row.label for row in left), limit, words)
    text = _reason_text(left[0], leader, within, len(admitted))
    if dropped := [row.label for row in tied if row is not left[0] and row is not leader]:
        text += f" {_join_names(dropped)}: no significant difference in spread, and a larger loss."
    text += _caveats_text(left[0], rows, limit)
    return Advice(left[0].label, text, (), limit, words | {left[0].label: "recommended"})


def _loses_more(row: ValueMeasures, other: ValueMeasures) -> bool:
    gap = mean_difference(other.qualities, row.qualities)
    return gap.value > 0 and is_significant(gap)


def _reason_text(row: ValueMeasures, leader: ValueMeasures, within: str, admitted: int) -> str:
    if row is leader and admitted == 1:
        return f"{row.label} is the only value that loses no more than {within}: it has {_loss_text(row)}."
    if row is leader:
        return (
            f"{row.label} has the largest spread within groups, {row.spread}, of the {admitted} values that lose no "
            f"more than {within}; it has {_loss_text(row)}."
        )
    return (
        f"{row.label}: its spread within groups, {row.spread}, does not differ significantly from the largest "
        f"({leader.spread} at {leader.label}), and it keeps more quality, {_loss_text(row)} against "
        f"{_loss_text(leader)}; the limit is {within}."
    )


def _caveats_text(row: ValueMeasures, rows: Sequence[ValueMeasures], limit: float) -> str:
    """Caveats about the recommendation."""
    text = ""
    if -row.quality.value + MIN_STANDARD_ERRORS * row.quality.error > limit:
        text += " Within its error the loss may exceed that limit: more --prompts would tell."
    numbers = [number for r in rows if (number := label_number(r.label)) is not None]
    value = label_number(row.label)
    if value is not None and len(numbers) == len(rows) > 2 and value in (min(numbers), max(numbers)):
        text += " It is at the end of the scanned range: scan further."
    return text


def _undecided_text(left: Sequence[ValueMeasures], leader: ValueMeasures, within: str) -> str:
    names = _join_names([row.label for row in left])
    text = f"{names} cannot be told apart: neither spread nor loss differs by more than {MIN_STANDARD_ERRORS:g} "
    text += f"standard errors, and each loses no more than {within}."
    needed = [n for row in left if row is not leader and (n := _needed_prompts(leader, row)) is not None]
    if needed and max(needed) <= MOST_PROMPTS:
        return text + f" If the differences are as large as they look, about --prompts {max(needed)} would show them."
    return text + " Any of them will do; more --prompts or values further apart may show a difference."


def _needed_prompts(leader: ValueMeasures, row: ValueMeasures) -> int | None:
    """Prompts at which the observed difference in spread would be significant; rounded up to two digits."""
    gap = mean_difference(leader.spreads, row.spreads)
    if gap.value == 0 or gap.number < 2:
        return None
    exact = gap.number * (MIN_STANDARD_ERRORS * gap.error / gap.value) ** 2
    unit = 10 ** max(0, math.floor(math.log10(max(exact, 1))) - 1)
    return max(math.ceil(exact / unit) * unit, gap.number + 1)


def _verdict(row: ValueMeasures, limit: float) -> str:
    """Where a value's loss lies relative to the limit, given its error."""
    loss, room = -row.quality.value, MIN_STANDARD_ERRORS * row.quality.error
    if not row.quality.number:
        return "could not be scored"
    if loss > limit:
        return "loses too much" if loss - room > limit else "probably loses too much"
    return "within the tolerance" if loss + room <= limit else "probably within the tolerance"


def _loss_text(row: ValueMeasures) -> str:
    value = row.quality.value
    return f"a {'gain' if value > 0 else 'loss'} of {abs(value):.3f} ± {row.quality.error:.3f}"


def label_number(label: str) -> float | None:
    """A label as a number; None if it is not a finite number."""
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _join_names(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
