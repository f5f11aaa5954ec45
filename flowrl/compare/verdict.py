"""Which variant is ahead of which, where that can be told at all.

Every pair of a table (a reward over an axis) is looked at, so every pair's p-value is corrected for all of them by
Holm's step-down rule (S. Holm, A simple sequentially rejective multiple test procedure, 1979): among equal variants at
most one table in twenty holds any claim, however many variants it has and however their values hang together. The
headline looks at the variant of the highest mean, but claims only what the corrected pairs tell, so that picking the
maximum costs nothing more.

Where both variants ran with the same seeds the p-value is that of Student's t of the differences seed by seed, else
that of Welch. With one seed there is no standard error, and one of 0 is no measure of anything (differences that
agree to the last digit come of runs that are no independent draws, not of certainty): of neither anything is told.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from scipy.special import stdtr

from flowrl.compare.curves import Comparison
from flowrl.report.numerals import MeanWithError, decimals_for, format_with_error

LEVEL = 0.05  # how often a table of equal variants may hold a claim
ROUNDING = 1e-12  # of the values themselves: a standard error below it is 0
RULE = (
    "A variant is called ahead only where Student's t of the differences seed by seed (of Welch where seeds are not "
    "shared) is beyond chance at 5 % for all pairs of its table together, by Holm's rule: of twenty tables of equal "
    "variants one holds a claim, and each reward over each axis is a table of its own. The variant of the highest mean "
    "is ahead of nobody by that alone. A standard error of 0 tells nothing."
)


@dataclass(frozen=True)
class Difference:
    """`first` minus `second` with the standard error of that; number: of seeds (of the fewer). chance: the two-sided
    p-value of this pair alone, 1 where the error is 0. corrected: for all `pairs` that were looked at."""

    first: str
    second: str
    value: float
    error: float
    chance: float
    number: int
    paired: bool
    corrected: float
    pairs: int = 1

    @property
    def told(self) -> bool:
        """Whether it is more than chance would give in any of the pairs."""
        return self.corrected <= LEVEL

    def sentence(self) -> str:
        """What may be said of it."""
        seeds = f"{self.number} {'shared ' if self.paired else ''}seeds"
        mean = MeanWithError(abs(self.value), self.error, self.number)
        by = format_with_error(mean, decimals_for(mean))
        p = f"p = {self.corrected:.2g}" + (f" for {self.pairs} pairs" if self.pairs > 1 else "")
        if not self.told:
            why = p if self.error else "a standard error of 0 tells nothing"
            return f"{self.first} and {self.second}: no difference can be told with {seeds} ({by}, {why})"
        ahead, behind = (self.first, self.second) if self.value > 0 else (self.second, self.first)
        return f"{ahead} is ahead of {behind} by {by} ({seeds}, {p})"


def difference(first: str, second: str, a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """The difference of two variants' values by seed, as the only pair; None where one of them has a single seed."""
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
    chance = 2 * float(stdtr(freedom, -abs(value) / error)) if error else 1.0
    return Difference(first, second, value, error, chance, number, len(shared) > 1, chance)


def holm(chances: Sequence[float]) -> list[float]:
    """The p-values corrected for looking at all of them: each times how many are no smaller, never falling, at most
    1."""
    found, least = [1.0] * len(chances), 0.0
    for rank, i in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        found[i] = least = min(1.0, max(least, chances[i] * (len(chances) - rank)))
    return found


def differences(comparison: Comparison) -> list[Difference]:
    """Every pair of variants that has an error bar, the ones that can be told apart first, corrected for all."""
    pairs = combinations(comparison.values.items(), 2)
    known = [d for (a, x), (b, y) in pairs if (d := difference(a, b, x, y)) is not None]
    corrected = holm([d.chance for d in known])
    known = [replace(d, corrected=p, pairs=len(known)) for d, p in zip(known, corrected, strict=True)]
    return sorted(known, key=lambda d: (not d.told, -abs(d.value)))


def headline(comparison: Comparison) -> str:
    """One or two sentences: who is ahead of whom, and what cannot be told."""
    variants = list(comparison.values)
    if len(variants) < 2:
        return "There is one variant; nothing to compare it with."
    if not (known := differences(comparison)):
        return "One seed a variant: there is no error bar, so no difference can be told. Give --seeds 5 or more."
    means = {name: m.value for name in variants if (m := comparison.mean(name)) is not None}
    best = max(means, key=means.__getitem__)
    mine = [d for d in known if best in (d.first, d.second)]
    beaten = [d.second if d.first == best else d.first for d in mine if d.told]
    level = [d.second if d.first == best else d.first for d in mine if not d.told]
    if not any(d.told for d in known):
        seeds = min(d.number for d in known)
        return f"Between none of the {len(variants)} variants a difference can be told with {seeds} seeds."
    told = sum(d.told for d in known)
    text = f"{best} has the highest mean"
    text += f" and is ahead of {_listed(beaten)}" if beaten else ""
    text += f"; whether it is ahead of {_listed(level)} cannot be told" if level else ""
    return f"{text}. Of {len(known)} pairs, {told} can be told apart."


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
