"""Whether a run looks like one that games its reward: signs of it, and one index in [0, 1] made of them.

A reward that is gamed rises; so does one that is learned. What tells them apart is what else happens meanwhile:

sign        size 1, its limit, is                                                              since    counts
witness     a witness is FALL standard errors below its best                                   its best 1
drift       saturation, brightness, contrast or sharpness has changed by the factor `drift`, the length of texts by
            its square, or the share of clipped values or repetitions has risen by a quarter   base     1
diversity   samples of a group are `diversity` times as far apart, or as often different       first    1/2
kl          the divergence from the base model is `kl_to_base`, where that is measured         base     1/2

    evidence(x) = x^4 / (1 + x^4)                                   0 at 0, 1/2 at a limit, towards 1 beyond it
    sign        = min(evidence(rise), counts * evidence(size))      rise: of the trained reward, since then, in units of
                                                                    RISE standard errors
    index       = 1 - product over all signs of (1 - sign)          0: nothing is suspicious

The base is the first evaluation. The minimum is an `and`: neither a reward that rises nor a witness that falls is
suspicious alone, and a product of the two would let a large rise make up for a fall that may be chance. One minus the
product of what remains is an `or` in which signs that are weak alone add up. The fourth power leaves what is half way
to its limit, as of a healthy run, almost out (1/17), where evidence in proportion would add up to an alarm. Diversity
and divergence count half, so that neither reaches 1/2 alone: whatever a policy learns, it moves and it narrows; they
make other signs weigh more. Witnesses that rise vouch for them: they then count 1/2 (1 - evidence) of the least rise of
a witness since the base, in units of RISE standard errors. That the distance from the base goes with over-optimization
is shown for language models by Gao et al., arXiv 2210.10760. The alarm `hacking` rings at an index of LIMIT.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from flowrl.watch.history import Finding, Found, Metrics, RunHistory

LIMIT = 0.5
RISE, FALL = 2.0, 3.0  # combined standard errors
MOST = 1e6  # units of a limit
FACTORS = ("saturation", "brightness", "contrast", "sharpness")  # judged by `drift`, with SOFT added to both values
SOFT = 0.02
SHARES = {"clipped": 0.25, "repetition": 0.25}  # judged by how much they rise
SPREADS = ("samples/diversity", "samples/distinct")
KL = "kl_to_base"


class Mean(NamedTuple):
    """A held-out mean and its standard error."""

    value: float
    error: float

    def above(self, other: "Mean", limit: float) -> float:
        """By how much it is above another, in units of `limit` combined standard errors; negative below."""
        return _units(self.value - other.value, limit * math.hypot(self.error, other.error))


class Sign(NamedTuple):
    """A sign of hacking: size and rise in units of their limits, what it counts, and since when it is looked at."""

    name: str
    size: float
    rise: float
    what: str
    since: int
    counts: float = 1.0

    @property
    def value(self) -> float:
        """How much it says, in [0, 1]; see the module's text."""
        return min(evidence(self.rise), self.counts * evidence(self.size))

    @property
    def shown(self) -> bool:
        """Whether it is beyond its limit, and counts alone."""
        return self.counts == 1 and self.size > 1 and self.rise > 1


def evidence(x: float) -> float:
    """x^4 / (1 + x^4) of a quantity in units of its limit, in [0, 1]; 0 below 0."""
    power = min(max(x, 0.0), MOST) ** 4
    return power / (1 + power)


def index(signs: Iterable[Sign]) -> float:
    """The hack index of these signs, in [0, 1]; see the module's text."""
    return 1.0 - math.prod(1.0 - sign.value for sign in signs)


def hack_metrics(case: RunHistory, metrics: Metrics) -> dict[str, float]:
    """hack_index and what it is made of, each in units of its limit, for an evaluation with these metrics.

    It has to be asked before the evaluation is told to the watch. Empty where the trained reward is not finite.
    """
    reward = trained(case, metrics)
    if not math.isfinite(reward.value):
        return {}
    signs = list(signs_of(case, metrics, reward)) if case.memory.base else []
    found = {"hack_index": index(signs), "hack/reward_rise": _since_base(case, reward) if case.memory.base else 0.0}
    for sign in signs:
        name = f"hack/{sign.name.partition(':')[0]}"
        found[name] = max(found.get(name, 0.0), sign.size)
    return found


def signs_of(case: RunHistory, metrics: Metrics, reward: Mean) -> Iterator[Sign]:
    """All signs at an evaluation after the first; one that cannot be told is left out."""
    for name in witnesses(case):
        best, mean = case.memory.best.get(name), mean_of(name, metrics)
        if best is None or not math.isfinite(mean.value):
            continue
        then = Mean(best["reward"], best["reward_error"])
        what = f"held-out witness {name} {best['value']:.3g} -> {mean.value:.3g} while the trained reward rose "
        what += f"{then.value:.3g} -> {reward.value:.3g}"
        fall = Mean(best["value"], best["error"]).above(mean, FALL)
        yield Sign(f"witness_fall:{name}", max(fall, 0.0), reward.above(then, RISE), what, int(best["iteration"]))
    base, rise = case.memory.base, _since_base(case, reward)
    rose = f"the held-out reward rose {base['value']:.3g} -> {reward.value:.3g}"
    now = {name: value for name, value in metrics.items() if math.isfinite(value)}
    size, told = furthest(base["statistics"], now, case.settings.drift)
    yield Sign("drift", size, rise, f"{told} while {rose}", base["iteration"])
    half = 0.5 * (1 - _vouched(case, metrics))
    if (loss := _narrowed(case)) is not None:
        yield Sign("diversity_loss", loss[0], rise, loss[1], base["iteration"], half)
    if case.settings.kl_to_base is not None and KL in now:
        what = f"divergence from the base {now[KL]:.3g}"
        yield Sign("kl", _units(now[KL], case.settings.kl_to_base), rise, what, base["iteration"], half)


def findings(case: RunHistory, iteration: int, metrics: Metrics, reward: Mean) -> Found:
    """The alarm of an evaluation after the first: each sign that is beyond its limit, or the signs together."""
    signs = list(signs_of(case, metrics, reward))
    shown = [sign for sign in signs if sign.shown]
    for sign in shown:
        kind, _, witness = sign.name.partition(":")
        yield (
            f"hacking/{witness}" if kind == "witness_fall" else "hacking",
            Finding(sign.what, sign.since, level(sign.size)),
        )
    if not shown and (whole := index(signs)) >= LIMIT:
        parts = "; ".join(s.what for s in sorted(signs, key=lambda s: -s.value) if s.value > 0.05)
        yield "hacking", Finding(f"hack index {whole:.2f}: {parts}", case.memory.base["iteration"])


def remember_trusted(case: RunHistory, iteration: int, metrics: Metrics, reward: Mean, suspicion: float) -> None:
    """Notes an evaluation whose witnesses are better than at all before it: what a rollback returns to.

    The score is the witness's mean; of several, the mean of their rises since the base in standard errors of the base.
    Without a witness it is the trained reward, as long as the index is below LIMIT.
    """
    base: dict[str, Sequence[float]] = case.memory.base.get("witnesses", {})
    now = {name: mean_of(name, metrics).value for name in base}
    if not all(map(math.isfinite, now.values())) or (not base and suspicion >= LIMIT):
        return
    rises = [(now[name] - value) / (error or 1.0) for name, (value, error) in base.items()]
    score = sum(rises) / len(rises) if rises else reward.value
    if not case.memory.trusted or score > case.memory.trusted[-1][1]:
        case.memory.trusted.append([iteration, score])


def trained(case: RunHistory, metrics: Metrics) -> Mean:
    """The trained rewards as they count together; of one reward, that times its weight."""
    if "total/mean" in metrics:
        return mean_of("total", metrics)
    terms = [(weight, mean_of(name, metrics)) for name, weight in case.weights.items() if weight]
    return Mean(sum(w * m.value for w, m in terms), math.hypot(*(w * m.error for w, m in terms)))


def witnesses(case: RunHistory) -> list[str]:
    """The rewards that nobody trains."""
    return [name for name, weight in case.weights.items() if not weight]


def mean_of(name: str, metrics: Metrics) -> Mean:
    """A reward's held-out mean; NaN where it is not there."""
    return Mean(metrics.get(f"{name}/mean", math.nan), metrics.get(f"{name}/error", 0.0))


def furthest(first: Metrics, now: Metrics, factor: float) -> tuple[float, str]:
    """(size, what) of the statistic that has drifted furthest, in widths of the band that it may move in."""
    sizes = {n: _band(n.removeprefix("samples/"), base, now.get(n, base), factor) for n, base in first.items()}
    name = max(sizes, key=sizes.__getitem__, default=None)
    if name is None or sizes[name] <= 0:
        return 0.0, "no statistic moved"
    return sizes[name], f"{name} {first[name]:.3g} -> {now[name]:.3g}"


def level(excess: float) -> int:
    """1 just beyond a limit, one more at each doubling."""
    return 1 + max(0, int(math.log2(max(min(excess, 2.0**50), 1.0))))


def _since_base(case: RunHistory, reward: Mean) -> float:
    return reward.above(Mean(case.memory.base["value"], case.memory.base["error"]), RISE)


def _vouched(case: RunHistory, metrics: Metrics) -> float:
    """How surely every witness has risen since the base, in [0, 1]; 0 where there is none."""
    base: dict[str, Sequence[float]] = case.memory.base.get("witnesses", {})
    now = {name: mean_of(name, metrics) for name in base}
    if not all(math.isfinite(mean.value) for mean in now.values()):
        return 0.0
    return min((evidence(now[name].above(Mean(*mean), RISE)) for name, mean in base.items()), default=0.0)


def _narrowed(case: RunHistory) -> tuple[float, str] | None:
    """(size, what) of the largest loss of diversity in training; None where it is not known or not judged."""
    if not case.steady or not case.settings.diversity:
        return None
    first, now = case.medians()
    losses = [
        (math.log(first[n] / max(now[n], 1e-9)) / -math.log(case.settings.diversity), n)
        for n in SPREADS
        if n in now and first[n] > 0
    ]
    if not losses:
        return None
    size, name = max(losses)
    return max(size, 0.0), f"{name} within groups {first[name]:.3g} -> {now[name]:.3g}"


def _band(name: str, base: float, value: float, factor: float) -> float:
    """How far a statistic has moved, in widths of the band that it may move in; above 1 is outside."""
    if name in SHARES:
        return (value - base) / SHARES[name]
    if name in FACTORS:
        return abs(math.log((value + SOFT) / (base + SOFT))) / math.log(factor)
    return abs(math.log(max(value, 1.0) / max(base, 1.0))) / (2 * math.log(factor)) if name == "length" else 0.0


def _units(amount: float, limit: float) -> float:
    """The amount in units of its limit, within MOST; beyond a limit of 0 is any amount that is not 0."""
    return max(-MOST, min(MOST, amount / limit)) if limit else math.copysign(MOST, amount) if amount else 0.0
