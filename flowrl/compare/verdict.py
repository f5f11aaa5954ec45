"""Which variant is ahead of which, where the data can tell.

All pairs of a table (a reward over an axis) are tested, so every pair's p-value is corrected for all of them by Holm's
step-down rule (S. Holm, A simple sequentially rejective multiple test procedure, 1979): among equal variants at most
one table in twenty makes any claim, however many variants it has and however their values are correlated. The headline
names the variant with the highest mean, but claims only what the corrected pairs show, so picking the maximum needs no
further correction.

If both variants ran with the same seeds, the p-value is that of a paired Student's t test over seeds, otherwise that of
Welch's test. With one seed there is no standard error, and a standard error of 0 measures nothing (differences that
agree to the last digit come from runs that are not independent, not from certainty): neither supports a claim.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from scipy.special import stdtr

from flowrl.compare.curves import Comparison
from flowrl.report.numerals import MeanWithError, decimals_for, format_with_error

LEVEL = 0.05  # how often a table of equal variants may make a claim
ROUNDING = 1e-12  # relative to the values: a standard error below it counts as 0
RULE = (
    "A variant is called ahead only if a paired Student's t test over seeds (Welch's test if seeds are not shared) is "
    "significant at 5 % after Holm's correction for all pairs of its table: of twenty tables of equal variants, one "
    "makes a claim, and each reward over each axis is a table of its own. Having the highest mean does not by itself "
    "put a variant ahead. A standard error of 0 says nothing."
)


@dataclass(frozen=True)
class VariantDifference:
    """`first` minus `second`, with its standard error. number: of seeds (the smaller of the two). p_value: two-sided,
    of this pair alone, 1 if the error is 0. corrected: the p-value corrected for all `pairs` that were tested."""

    first: str
    second: str
    value: float
    error: float
    p_value: float
    number: int
    paired: bool
    corrected: float
    pairs: int = 1

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is at most LEVEL."""
        return self.corrected <= LEVEL

    def sentence(self) -> str:
        """What the data show about this pair."""
        seeds = f"{self.number} {'shared ' if self.paired else ''}seeds"
        mean = MeanWithError(abs(self.value), self.error, self.number)
        by = format_with_error(mean, decimals_for(mean))
        p = f"p = {self.corrected:.2g}" + (f" for {self.pairs} pairs" if self.pairs > 1 else "")
        if not self.significant:
            why = p if self.error else "a standard error of 0 says nothing"
            return f"{self.first} and {self.second} cannot be told apart with {seeds} ({by}, {why})"
        ahead, behind = (self.first, self.second) if self.value > 0 else (self.second, self.first)
        return f"{ahead} is ahead of {behind} by {by} ({seeds}, {p})"


def paired_difference(
    first: str, second: str, a: Mapping[int, float], b: Mapping[int, float]
) -> VariantDifference | None:
    """The difference of two variants' values by seed, uncorrected; None if one of them has a single seed."""
    shared = sorted(set(a) & set(b))
    if len(shared) > 1:
        deltas = [a[seed] - b[seed] for seed in shared]
        value, error = statistics.fmean(deltas), statistics.stdev(deltas) / math.sqrt(len(deltas))
        freedom, number = float(len(deltas) - 1), len(deltas)
    elif min(len(a), len(b)) < 2:
        return None
    else:
        parts = [(statistics.variance(v.values()) / len(v), len(v) - 1) for v in (a, b)]
        square = sum(part for part, _ in parts)
        freedom = 1 / sum((part / square) ** 2 / n for part, n in parts) if square else min(n for _, n in parts)
        value, error = statistics.fmean(a.values()) - statistics.fmean(b.values()), math.sqrt(square)
        number = min(len(a), len(b))
    error = error if error > ROUNDING * max(map(abs, [*a.values(), *b.values()])) else 0.0
    p_value = 2 * float(stdtr(freedom, -abs(value) / error)) if error else 1.0
    return VariantDifference(first, second, value, error, p_value, number, len(shared) > 1, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values with Holm's correction: each times the number of those no smaller, made monotone, at most 1."""
    corrected, least = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        corrected[i] = least = min(1.0, max(least, p_values[i] * (len(p_values) - rank)))
    return corrected


def differences(comparison: Comparison) -> list[VariantDifference]:
    """Every pair of variants with an error bar, corrected for all pairs, the significant ones first."""
    pairs = combinations(comparison.values.items(), 2)
    known = [d for (a, x), (b, y) in pairs if (d := paired_difference(a, b, x, y)) is not None]
    corrected = holm([d.p_value for d in known])
    known = [replace(d, corrected=p, pairs=len(known)) for d, p in zip(known, corrected, strict=True)]
    return sorted(known, key=lambda d: (not d.significant, -abs(d.value)))


def headline(comparison: Comparison) -> str:
    """One or two sentences: which variant is ahead of which, and which cannot be told apart."""
    variants = list(comparison.values)
    if len(variants) < 2:
        return "There is only one variant, so there is nothing to compare it with."
    if not (known := differences(comparison)):
        return "With one seed per variant there is no error bar, so no difference can be shown; give --seeds 5 or more."
    means = {name: m.value for name in variants if (m := comparison.mean(name)) is not None}
    best = max(means, key=means.__getitem__)
    mine = [d for d in known if best in (d.first, d.second)]
    beaten = [d.second if d.first == best else d.first for d in mine if d.significant]
    level = [d.second if d.first == best else d.first for d in mine if not d.significant]
    if not any(d.significant for d in known):
        seeds = min(d.number for d in known)
        return f"No pair of the {len(variants)} variants can be told apart with {seeds} seeds."
    significant = sum(d.significant for d in known)
    text = f"{best} has the highest mean"
    text += f" and is ahead of {_join_names(beaten)}" if beaten else ""
    text += f"; it cannot be told apart from {_join_names(level)}" if level else ""
    return f"{text}. Of {len(known)} pairs, {significant} can be told apart."


def _join_names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
