"""Reward hacking: its signs in a run's metrics, and one index in [0, 1] computed from them.

A hacked reward rises, and so does a learned one. What else happens meanwhile tells them apart:

sign        its size is 1, the limit, if                                                       since    counts
witness     a witness is FALL standard errors below its best                                   its best 1
lost        a witness is FALL standard errors below the base, while the reward is not          base     1
drift       saturation, brightness, contrast or sharpness has changed by the factor `drift`, the length of texts by
            its square, or the share of clipped values or repetitions has risen by a quarter   base     1
diversity   samples of a group are `diversity` times as far apart, or as often different       first    1/2
kl          the divergence from the base model is `kl_to_base`, where that is measured         base     1/2

    evidence(x) = x^4 / (1 + x^4)                                   0 at 0, 1/2 at a limit, towards 1 beyond it
    sign        = min(evidence(rise), counts * evidence(size))      rise: of the trained reward, since then, in units of
                                                                    RISE standard errors
    index       = 1 - product over all signs of (1 - sign)          0: nothing is suspicious

The base is the first evaluation. Of a rise it is asked whether there is one. All evaluations have the same prompts and
noise, so its error is that of the differences sample by sample where these are known, about half of the combined one.
Of a fall it is asked whether it is large, so its unit is the error of both means without pairing, which says how much
the witness differs from prompt to prompt: of pairs, enough prompts prove a fall of any size. (On shapes-flux, witness
residual, in limits: in three runs of `tiny_draft`, whose other witnesses rise, it falls by 0.3 to 0.7, by pairs 0.6 to
1.5; in `tiny_refl`, where they fall, by 1.6, by pairs 2.6.)

A reward that is gamed for long may come down again, as pictures leave what it knows, and the witness with it. That it
is not above the base any more does not acquit it: of `lost` the rise is the largest at any evaluation since. (On
shapes-flux, `tiny_refl` with seed 1: between iterations 5 and 10 the reward falls back from 0.535 to 0.528, where it
had begun at 0.526, strict from 0.553 to 0.450, and the residual to far below its base.) It counts beyond both limits
alone, so that a run's index is otherwise the same without it. Where the reward is below the base too, a run has failed,
and another alarm is about that.

The minimum acts as an `and`: neither a rising reward nor a falling witness is suspicious alone, and a product of the
two would let a large rise make up for a fall that may be chance. One minus the product acts as an `or` in which signs
that are weak alone add up. The fourth power gives a sign that is halfway to its limit, as in a healthy run, almost no
weight (1/17), where proportional evidence would add up to an alarm. Diversity and divergence count half, so that
neither reaches 1/2 alone: any policy that learns moves and narrows; they strengthen other signs. Rising witnesses
weaken these two, which then count 1/2 (1 - evidence) of the smallest rise of a witness since the base, in units of RISE
standard errors. That distance from the base accompanies over-optimization is shown for language models by Gao et al.,
arXiv 2210.10760. The alarm `hacking` rings at an index of LIMIT.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from flowrl.watch.history import Finding, Findings, Metrics, RunHistory

LIMIT = 0.5
RISE, FALL = 2.0, 3.0  # combined standard errors
MAX_SIZE = 1e6  # units of a limit
FACTORS = ("saturation", "brightness", "contrast", "sharpness")  # judged by `drift`, with OFFSET added to both values
OFFSET = 0.02
SHARES = {"clipped": 0.25, "repetition": 0.25}  # judged by how much they rise
SPREADS = ("samples/diversity", "samples/distinct")
KL = "kl_to_base"


class HeldoutMean(NamedTuple):
    """A held-out mean and its standard error."""

    value: float
    error: float

    def above(self, other: "HeldoutMean", limit: float) -> float:
        """The excess over another mean, in units of `limit` combined standard errors; negative if it is below."""
        return _in_units_of(self.value - other.value, limit * math.hypot(self.error, other.error))


class TrainedReward(NamedTuple):
    """The trained reward's held-out mean and error. rises: iteration of an earlier evaluation -> rise since, of pairs.

    A rise of pairs is the mean of the differences of samples of equal prompt and noise, with its standard error.
    """

    value: float
    error: float
    rises: Mapping[int, HeldoutMean] = {}

    def since(self, iteration: int, then: HeldoutMean) -> float:
        """The rise since an evaluation with this mean, in units of RISE standard errors; negative if it has fallen.

        Errors are those of pairs, or the combined ones where no pairs are known.
        """
        pairs = self.rises.get(iteration)
        if pairs is None:
            return HeldoutMean(self.value, self.error).above(then, RISE)
        return _in_units_of(pairs.value, RISE * pairs.error)


class Sign(NamedTuple):
    """A sign of hacking: size and rise in units of their limits, its weight `counts`, and the iteration it is since."""

    name: str
    size: float
    rise: float
    what: str
    since: int
    counts: float = 1.0

    @property
    def value(self) -> float:
        """The strength of the sign, in [0, 1]; see the module's docstring."""
        return min(evidence(self.rise), self.counts * evidence(self.size))

    @property
    def beyond_limit(self) -> bool:
        """Whether it is beyond its limit and suffices alone."""
        return self.counts == 1 and self.size > 1 and self.rise > 1


def evidence(x: float) -> float:
    """x^4 / (1 + x^4) of a quantity in units of its limit, in [0, 1]; 0 below 0."""
    power = min(max(x, 0.0), MAX_SIZE) ** 4
    return power / (1 + power)


def hack_index(signs: Iterable[Sign]) -> float:
    """The hack index of these signs, in [0, 1]; see the module's docstring."""
    return 1.0 - math.prod(1.0 - sign.value for sign in signs)


def hack_metrics(history: RunHistory, metrics: Metrics, rises: Mapping[int, HeldoutMean]) -> dict[str, float]:
    """hack_index and its components, each in units of its limit, for an evaluation with these metrics and rises.

    Call it before the watchdog sees the evaluation. Empty if the trained reward is not finite.
    """
    reward = trained_reward(history, metrics, rises)
    if not math.isfinite(reward.value):
        return {}
    signs = list(find_signs(history, metrics, reward)) if history.state.base else []
    values = {
        "hack_index": hack_index(signs),
        "hack/reward_rise": _rise_since_base(history, reward) if history.state.base else 0.0,
    }
    for sign in signs:
        name = f"hack/{sign.name.partition(':')[0]}"
        values[name] = max(values.get(name, 0.0), sign.size)
    return values


def find_signs(history: RunHistory, metrics: Metrics, reward: TrainedReward) -> Iterator[Sign]:
    """All signs at an evaluation after the first; one that cannot be measured is left out."""
    for name in witness_names(history):
        best, mean = history.state.best.get(name), heldout_mean(name, metrics)
        if best is None or not math.isfinite(mean.value):
            continue
        then = HeldoutMean(best["reward"], best["reward_error"])
        what = f"held-out witness {name} {best['value']:.3g} -> {mean.value:.3g} while the trained reward rose "
        what += f"{then.value:.3g} -> {reward.value:.3g}"
        fall = HeldoutMean(best["value"], best["error"]).above(mean, FALL)
        since = int(best["iteration"])
        yield Sign(f"witness_fall:{name}", max(fall, 0.0), reward.since(since, then), what, since)
    yield from _lost(history, metrics, reward)
    base, rise = history.state.base, _rise_since_base(history, reward)
    reward_text = f"the held-out reward rose {base['value']:.3g} -> {reward.value:.3g}"
    now = {name: value for name, value in metrics.items() if math.isfinite(value)}
    size, what = largest_drift(base["statistics"], now, history.settings.drift)
    yield Sign("drift", size, rise, f"{what} while {reward_text}", base["iteration"])
    half = 0.5 * (1 - _witness_support(history, metrics))
    if (loss := _diversity_loss(history)) is not None:
        yield Sign("diversity_loss", loss[0], rise, loss[1], base["iteration"], half)
    if history.settings.kl_to_base is not None and KL in now:
        what = f"divergence from the base {now[KL]:.3g}"
        yield Sign("kl", _in_units_of(now[KL], history.settings.kl_to_base), rise, what, base["iteration"], half)


def _lost(history: RunHistory, metrics: Metrics, reward: TrainedReward) -> Iterator[Sign]:
    """Of each witness that is far below the base, after a reward that had risen and has come down, no further."""
    base = history.state.base
    rise, value, iteration = base.get("peak", (0.0, reward.value, 0))
    if rise <= 1 or not 0 <= _rise_since_base(history, reward) <= 1:
        return
    for name, then in base["witnesses"].items():
        mean = heldout_mean(name, metrics)
        fall = HeldoutMean(*then).above(mean, FALL)
        if math.isfinite(mean.value) and fall > 1:
            what = f"held-out witness {name} {then[0]:.3g} -> {mean.value:.3g} while the trained reward rose "
            what += f"{base['value']:.3g} -> {value:.3g} (at iteration {iteration}; now {reward.value:.3g})"
            yield Sign(f"witness_lost:{name}", fall, rise, what, base["iteration"])


def remember_peak(history: RunHistory, iteration: int, reward: TrainedReward) -> None:
    """Records the largest rise of the trained reward since the base, in units of RISE standard errors."""
    rise = _rise_since_base(history, reward)
    if rise > history.state.base.get("peak", (0.0,))[0]:
        history.state.base["peak"] = [rise, reward.value, iteration]


def hacking_findings(history: RunHistory, iteration: int, metrics: Metrics, reward: TrainedReward) -> Findings:
    """The findings of an evaluation after the first: each sign beyond its limit, else all signs together."""
    signs = list(find_signs(history, metrics, reward))
    beyond_limit = [sign for sign in signs if sign.beyond_limit]
    for sign in beyond_limit:
        kind, _, witness = sign.name.partition(":")
        yield (
            f"hacking/{witness}" if kind.startswith("witness") else "hacking",
            Finding(sign.what, sign.since, severity_level(sign.size)),
        )
    if not beyond_limit and (whole := hack_index(signs)) >= LIMIT:
        parts = "; ".join(s.what for s in sorted(signs, key=lambda s: -s.value) if s.value > 0.05)
        yield "hacking", Finding(f"hack index {whole:.2f}: {parts}", history.state.base["iteration"])


def remember_trusted(
    history: RunHistory, iteration: int, metrics: Metrics, reward: TrainedReward, suspicion: float
) -> None:
    """Records an evaluation whose witnesses are better than at any before it, for a rollback to return to.

    The score is the mean over witnesses of their rise since the base, in standard errors of the base. Without a witness
    it is the trained reward, as long as the hack index is below LIMIT.
    """
    base: dict[str, Sequence[float]] = history.state.base.get("witnesses", {})
    now = {name: heldout_mean(name, metrics).value for name in base}
    if not all(map(math.isfinite, now.values())) or (not base and suspicion >= LIMIT):
        return
    rises = [(now[name] - value) / (error or 1.0) for name, (value, error) in base.items()]
    score = sum(rises) / len(rises) if rises else reward.value
    if not history.state.trusted or score > history.state.trusted[-1][1]:
        history.state.trusted.append([iteration, score])


def trained_reward(
    history: RunHistory, metrics: Metrics, rises: Mapping[int, HeldoutMean] | None = None
) -> TrainedReward:
    """The weighted sum of the trained rewards, with its rises of pairs since earlier evaluations."""
    if "total/mean" in metrics:
        return TrainedReward(*heldout_mean("total", metrics), rises or {})
    terms = [(weight, heldout_mean(name, metrics)) for name, weight in history.weights.items() if weight]
    error = math.hypot(*(w * m.error for w, m in terms))
    return TrainedReward(sum(w * m.value for w, m in terms), error, rises or {})


def witness_names(history: RunHistory) -> list[str]:
    """The rewards of weight 0, which are not trained on."""
    return [name for name, weight in history.weights.items() if not weight]


def heldout_mean(name: str, metrics: Metrics) -> HeldoutMean:
    """A reward's held-out mean; NaN if it is missing."""
    return HeldoutMean(metrics.get(f"{name}/mean", math.nan), metrics.get(f"{name}/error", 0.0))


def largest_drift(first: Metrics, now: Metrics, factor: float) -> tuple[float, str]:
    """(size, description) of the statistic that has drifted furthest, in units of its allowed band."""
    sizes = {n: _drift_size(n.removeprefix("samples/"), base, now.get(n, base), factor) for n, base in first.items()}
    name = max(sizes, key=sizes.__getitem__, default=None)
    if name is None or sizes[name] <= 0:
        return 0.0, "no statistic moved"
    return sizes[name], f"{name} {first[name]:.3g} -> {now[name]:.3g}"


def severity_level(excess: float) -> int:
    """1 just beyond a limit, plus one at each doubling."""
    return 1 + max(0, int(math.log2(max(min(excess, 2.0**50), 1.0))))


def _rise_since_base(history: RunHistory, reward: TrainedReward) -> float:
    base = history.state.base
    return reward.since(base["iteration"], HeldoutMean(base["value"], base["error"]))


def _witness_support(history: RunHistory, metrics: Metrics) -> float:
    """Evidence that every witness has risen since the base, in [0, 1]; 0 if there is none."""
    base: dict[str, Sequence[float]] = history.state.base.get("witnesses", {})
    now = {name: heldout_mean(name, metrics) for name in base}
    if not all(math.isfinite(mean.value) for mean in now.values()):
        return 0.0
    return min((evidence(now[name].above(HeldoutMean(*mean), RISE)) for name, mean in base.items()), default=0.0)


def _diversity_loss(history: RunHistory) -> tuple[float, str] | None:
    """(size, description) of the largest loss of diversity in training; None if it is unknown or not judged."""
    if not history.steady or not history.settings.diversity:
        return None
    first, now = history.medians()
    losses = [
        (math.log(first[n] / max(now[n], 1e-9)) / -math.log(history.settings.diversity), n)
        for n in SPREADS
        if n in now and first[n] > 0
    ]
    if not losses:
        return None
    size, name = max(losses)
    return max(size, 0.0), f"{name} within groups {first[name]:.3g} -> {now[name]:.3g}"


def _drift_size(name: str, base: float, value: float, factor: float) -> float:
    """How far a statistic has moved, in units of its allowed band; above 1 is outside."""
    if name in SHARES:
        return (value - base) / SHARES[name]
    if name in FACTORS:
        return abs(math.log((value + OFFSET) / (base + OFFSET))) / math.log(factor)
    return abs(math.log(max(value, 1.0) / max(base, 1.0))) / (2 * math.log(factor)) if name == "length" else 0.0


def _in_units_of(amount: float, limit: float) -> float:
    """The amount in units of its limit, within +-MAX_SIZE; with a limit of 0, +-MAX_SIZE for any amount but 0."""
    return (
        max(-MAX_SIZE, min(MAX_SIZE, amount / limit)) if limit else math.copysign(MAX_SIZE, amount) if amount else 0.0
    )
