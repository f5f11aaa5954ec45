"""Which variant is ahead of which, where that can be told at all.

The rule: a difference of means is told only where it exceeds the 97.5 % quantile of Student's t times its standard
error over seeds (4.3 with three seeds in common, 2.3 with ten), and never less than twice. Where both variants ran
with the same seeds the differences are taken seed by seed, else by Welch's approximation. With one seed there is
no standard error, and nothing is told. Twenty such looks at equal variants still find one difference by chance.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from scipy.special import stdtrit

from flowrl.compare.curves import Comparison
from flowrl.report.numerals import Mean, decimals, with_error

LEAST = 2.0  # standard errors
QUANTILE = 0.975
CHANCE = 1 - (2 * QUANTILE - 1)  # how often a look at equal variants finds a difference


@dataclass(frozen=True)
class Difference:
    """`first` minus `second` with the standard error of that; number: of seeds (of the fewer). limit: how many
    standard errors it has to exceed."""

    first: str
    second: str
    value: float
    error: float
    limit: float
    number: int
    paired: bool

    @property
    def told(self) -> bool:
        """Whether it is more than chance would give."""
        return abs(self.value) > self.limit * self.error

    def sentence(self) -> str:
        """What may be said of it."""
        seeds = f"{self.number} {'shared ' if self.paired else ''}seeds"
        mean = Mean(abs(self.value), self.error, self.number)
        by = with_error(mean, decimals(mean))
        if not self.told:
            return f"{self.first} and {self.second}: no difference can be told with {seeds} ({by})"
        ahead, behind = (self.first, self.second) if self.value > 0 else (self.second, self.first)
        return f"{ahead} is ahead of {behind} by {by} ({seeds}, limit {self.limit:.1f} standard errors)"


def difference(first: str, second: str, a: Mapping[int, float], b: Mapping[int, float]) -> Difference | None:
    """The difference of two variants' values by seed; None where one of them has a single seed."""
    shared = sorted(set(a) & set(b))
    if len(shared) > 1:
        deltas = [a[seed] - b[seed] for seed in shared]
        error = statistics.stdev(deltas) / math.sqrt(len(deltas))
        return Difference(first, second, statistics.fmean(deltas), error, _limit(len(deltas) - 1), len(deltas), True)
    if min(len(a), len(b)) < 2:
        return None
    parts = [(statistics.variance(v.values()) / len(v), len(v) - 1) for v in (a, b)]
    square = sum(part for part, _ in parts)
    freedom = square**2 / sum(part**2 / n for part, n in parts) if square else min(n for _, n in parts)
    value = statistics.fmean(a.values()) - statistics.fmean(b.values())
    return Difference(first, second, value, math.sqrt(square), _limit(freedom), min(len(a), len(b)), False)


def differences(comparison: Comparison) -> list[Difference]:
    """Every pair of variants that has an error bar, the ones that can be told apart first."""
    pairs = combinations(comparison.values.items(), 2)
    found = [difference(a, b, x, y) for (a, x), (b, y) in pairs]
    known = [d for d in found if d is not None]
    return sorted(known, key=lambda d: (not d.told, -abs(d.value)))


def headline(comparison: Comparison) -> str:
    """One or two sentences: who is ahead of whom, and what cannot be told."""
    variants = list(comparison.values)
    if len(variants) < 2:
        return "There is one variant; nothing to compare it with."
    if not (known := differences(comparison)):
        return "One seed a variant: there is no error bar, so no difference can be told. Give --seeds 3 or more."
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


def _limit(freedom: float) -> float:
    return max(LEAST, float(stdtrit(freedom, QUANTILE)))
