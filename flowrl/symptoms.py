"""What is wrong with a run, read off its numbers: the rules of a training iteration and of a held-out evaluation.

A rule yields (alarm, Finding) as long as its condition holds; watch.py decides what rings, and its table says in words
what is coded here. Medians over a few iterations stand for a value, so that one odd batch rings nothing.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

Metrics = Mapping[str, float]

KL_SEEN, KL_BEFORE, KL_NOW = 20, 10, 3  # values that must have been seen, those of the running median, those judged
REPLAY_LIMITS = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.05}  # of a log-ratio that should be 0
RISE, FALL = 2.0, 3.0  # combined standard errors
TINY = 1e-12  # a gradient norm that is as good as 0
REWARD = "reward/total/mean"
FACTORS = ("saturation", "brightness", "contrast", "sharpness")  # judged by `drift`, with SOFT added to both values
SOFT = 0.02
SHARES = {"clipped": 0.25, "repetition": 0.25}  # judged by how much they rise
SPREADS = ("samples/diversity", "samples/distinct")


@dataclass(frozen=True)
class Settings:
    """The recipe's section `watch`; flowrl.recipe.schema explains it."""

    on_alarm: str = "warn"
    patience: int = 5
    ignore: Sequence[str] = ()
    kl: float = 10.0
    collapse: float = 0.1
    drift: float = 1.5
    diversity: float = 0.5
    lower: float = 0.5
    rollbacks: int = 2


class Finding(NamedTuple):
    """Something wrong. level 1, 2, 3 ...: worse by a factor of two each. grave: whether `on_alarm` applies."""

    what: str
    since: int
    level: int = 1
    grave: bool = True


Found = Iterator[tuple[str, Finding]]


@dataclass
class Memory:
    """What a watch remembers: plain lists, dicts and finite numbers."""

    first: dict[str, list[float]] = field(default_factory=dict)  # metric -> its first `patience` values
    recent: dict[str, list[float]] = field(default_factory=dict)  # metric -> its latest values
    seen: dict[str, int] = field(default_factory=dict)  # metric -> how many values
    streaks: dict[str, list[int]] = field(default_factory=dict)  # condition -> [begun at, how often in a row]
    active: dict[str, list[int]] = field(default_factory=dict)  # alarm -> [worst level, quiet for]
    base: dict[str, Any] = field(default_factory=dict)  # the first evaluation: iteration, reward, error, statistics
    best: dict[str, dict[str, float]] = field(default_factory=dict)  # "" or a witness -> where it was best
    rollbacks: int = 0


@dataclass
class Case:
    """A run as the rules see it. weights: of every reward, 0 for a witness; updates: optimizer steps an iteration."""

    weights: dict[str, float]
    settings: Settings
    updates: int
    clip: tuple[float, float]
    precision: str
    steady: bool
    memory: Memory = field(default_factory=Memory)

    def remember(self, metrics: Metrics) -> None:
        """Keeps the values that medians are taken of."""
        memory, patience = self.memory, self.settings.patience
        for name, value in metrics.items():
            watched = name in ("kl", "approx_kl", REWARD) or name.startswith("samples/")
            if watched and math.isfinite(value):
                if len(first := memory.first.setdefault(name, [])) < patience:
                    first.append(value)
                memory.recent[name] = [*memory.recent.get(name, []), value][-max(KL_BEFORE + KL_NOW, patience) :]
                memory.seen[name] = memory.seen.get(name, 0) + 1

    def streak(self, name: str, holds: bool | None, iteration: int) -> tuple[int, int]:
        """(begun at, how many iterations in a row) of a condition; None neither prolongs nor ends it."""
        begun, length = self.memory.streaks.get(name, [iteration, 0])
        if holds is not None:
            begun, length = (begun if length else iteration, length + 1) if holds else (iteration, 0)
            self.memory.streaks[name] = [begun, length]
        return begun, length


def in_training(case: Case, iteration: int, metrics: Metrics) -> dict[str, Finding]:
    """All that is wrong after a training iteration."""
    case.remember(metrics)
    rules = (_nonfinite, _replay, _no_gradient, _silent, _clip, _kl, _drift, _spread)
    return {name: finding for rule in rules for name, finding in rule(case, iteration, metrics)}


def held_out(case: Case, iteration: int, metrics: Metrics) -> dict[str, Finding]:
    """All that is wrong after an evaluation. The first is the base of the later ones."""
    reward = _trained(case, metrics)
    if not math.isfinite(reward.value):
        return {"nonfinite": Finding("the held-out reward is not finite: no sample could be scored", iteration)}
    found: dict[str, Finding] = {}
    if case.memory.base:
        rules = (_collapse, _drift_heldout, _witnesses)
        found = {name: finding for rule in rules for name, finding in rule(case, iteration, metrics, reward)}
    else:
        statistics = {k: v for k, v in metrics.items() if k.startswith("samples/") and math.isfinite(v)}
        case.memory.base = {"iteration": iteration, "statistics": statistics, **reward._asdict()}
    for name, mean in {"": reward, **{n: _mean(n, metrics) for n in _witness_names(case)}}.items():
        best = case.memory.best.get(name)
        if math.isfinite(mean.value) and (best is None or mean.value > best["value"]):
            at = {"reward": reward.value, "reward_error": reward.error, "iteration": iteration}
            case.memory.best[name] = mean._asdict() | at
    return found


# what lasts


def _persisting(case: Case, name: str, holds: bool | None, what: str, iteration: int, times: int = 1) -> Found:
    begun, length = case.streak(name, holds, iteration)
    if length >= times * case.settings.patience:
        yield name, Finding(f"{what} for {length} iterations", begun)


def _at_once(case: Case, name: str, holds: bool | None, what: str, iteration: int) -> Found:
    begun, length = case.streak(name, holds, iteration)
    if holds:
        lasting = length >= case.settings.patience
        yield name, Finding(what, begun, 2 if lasting else 1, grave=lasting)


def _nonfinite(case: Case, iteration: int, metrics: Metrics) -> Found:
    bad = [name for name, value in metrics.items() if not math.isfinite(value) and not _unscored(name, metrics)]
    what = f"{', '.join(bad[:3])}{f' and {len(bad) - 3} more' if len(bad) > 3 else ''} not finite"
    if skipped := metrics.get("nonfinite_updates", 0.0):
        what = f"{skipped:.0%} of the updates were skipped, their gradient was not finite"
    yield from _at_once(case, "nonfinite", bool(bad or skipped), what, iteration)


def _unscored(name: str, metrics: Metrics) -> bool:
    """Whether a metric belongs to a reward that could score no sample."""
    return name.startswith("reward/") and metrics.get(f"{name.rpartition('/')[0]}/nan") == 1.0


def _replay(case: Case, iteration: int, metrics: Metrics) -> Found:
    gap, limit = metrics.get("replay_gap_max"), min(min(case.clip) / 2, REPLAY_LIMITS[case.precision])
    what = f"log-ratio {gap} before any update, where {limit:.2g} is the most that numerics explain or the clip bears"
    yield from _at_once(case, "replay", None if gap is None else gap > limit, what, iteration)


def _no_gradient(case: Case, iteration: int, metrics: Metrics) -> Found:
    norm = metrics.get("grad_norm")
    holds = None if norm is None else norm < TINY and metrics.get("adv/abs_mean", 1.0) > 0
    yield from _persisting(case, "no_gradient", holds, "gradient norm 0 in spite of advantages", iteration)


def _silent(case: Case, iteration: int, metrics: Metrics) -> Found:
    size = metrics.get("adv/abs_mean", 1.0 - metrics.get("groups/zero_variance", 0.0))
    yield from _persisting(case, "silent", size == 0, "all advantages 0", iteration)


def _clip(case: Case, iteration: int, metrics: Metrics) -> Found:
    """On the first update of a rollout nothing is outside the clip: the share is that of the others."""
    updates = case.updates - metrics.get("empty_updates", 0)
    outside = metrics.get("outside_frac", metrics.get("clip_frac", math.nan))
    known = math.isfinite(outside) and updates > 1
    share = outside * updates / (updates - 1) if known else 0.0
    what = f"{share:.0%} of decisions outside the clip range"
    yield from _persisting(case, "clip_all", share > 0.9 if known else None, what, iteration)
    none = "no decision outside the clip range"
    yield from _persisting(case, "clip_none", share == 0 if known else None, none, iteration, times=10)


# what moves


def _kl(case: Case, iteration: int, metrics: Metrics) -> Found:
    for name in ("kl", "approx_kl"):
        values = case.memory.recent.get(name, [])
        if name not in metrics or case.memory.seen.get(name, 0) < KL_SEEN:
            continue
        before, now = median(values[-KL_NOW - KL_BEFORE : -KL_NOW]), median(values[-KL_NOW:])
        if before > 0 and now > case.settings.kl * before:
            what = f"{name} {now:.3g}, {now / before:.3g} times its running median {before:.3g}"
            yield "kl", Finding(what, iteration - KL_NOW + 1, _level(now / before / case.settings.kl))
    # an explosion may end all learning within one iteration: no median here
    now, limit = metrics.get("approx_kl", 0.0), min(1.0, max(1e-5, 5e3 * max(case.clip) ** 2))
    if limit < now < math.inf:
        what = f"approx_kl {now:.3g} within one rollout, expected below {limit:.3g}"
        yield "kl", Finding(what, iteration, _level(now / limit))


def _drift(case: Case, iteration: int, metrics: Metrics) -> Found:
    first, now = _medians(case)
    if REWARD in now and now[REWARD] > max(case.memory.first[REWARD]):
        rise = f"the reward rose {first[REWARD]:.3g} -> {now[REWARD]:.3g}"
        yield from _drifted(case, rise, first, now, iteration - case.settings.patience + 1)


def _spread(case: Case, iteration: int, metrics: Metrics) -> Found:
    first, now = _medians(case)
    share, since = case.settings.diversity, iteration - case.settings.patience + 1
    for name in SPREADS if case.steady else ():
        if name in now and now[name] < share * first[name]:
            what = f"{name} within groups {first[name]:.3g} -> {now[name]:.3g}"
            yield "diversity", Finding(what, since, _level(share * first[name] / max(now[name], 1e-9)))


def _medians(case: Case) -> tuple[dict[str, float], dict[str, float]]:
    """Of each metric over the first and over the latest `patience` iterations, once these are different ones."""
    patience, memory = case.settings.patience, case.memory
    ready = [name for name in memory.first if memory.seen[name] >= 2 * patience]
    return {n: median(memory.first[n]) for n in ready}, {n: median(memory.recent[n][-patience:]) for n in ready}


def _drifted(case: Case, rise: str, first: Metrics, now: Metrics, since: int) -> Found:
    """The statistic that has drifted furthest from its first value, if any is beyond its band."""
    worst, told = 1.0, ""
    for name, base in first.items():
        size = _band(name.removeprefix("samples/"), base, now.get(name, base), case.settings.drift)
        if size > worst:
            worst, told = size, f"{name} {base:.3g} -> {now[name]:.3g} while {rise}"
    if told:
        yield "hacking", Finding(told, since, _level(worst))


def _band(name: str, base: float, value: float, factor: float) -> float:
    """How far a statistic has moved, in widths of the band that it may move in; above 1 is outside."""
    if name in SHARES:
        return (value - base) / SHARES[name]
    if name in FACTORS:
        return abs(math.log((value + SOFT) / (base + SOFT))) / math.log(factor)
    return abs(math.log(max(value, 1.0) / max(base, 1.0))) / (2 * math.log(factor)) if name == "length" else 0.0


def _level(excess: float) -> int:
    """1 just beyond a limit, one more at each doubling."""
    return 1 + max(0, int(math.log2(min(excess, 2.0**50))))


# held out


class _Mean(NamedTuple):
    value: float
    error: float


def _mean(name: str, metrics: Metrics) -> _Mean:
    return _Mean(metrics.get(f"{name}/mean", math.nan), metrics.get(f"{name}/error", 0.0))


def _trained(case: Case, metrics: Metrics) -> _Mean:
    """The weighted sum of the trained rewards; its error is that of independent rewards."""
    terms = [(weight, _mean(name, metrics)) for name, weight in case.weights.items() if weight]
    return _Mean(sum(w * m.value for w, m in terms), math.hypot(*(w * m.error for w, m in terms)))


def _witness_names(case: Case) -> Iterable[str]:
    return [name for name, weight in case.weights.items() if not weight]


def _collapse(case: Case, iteration: int, metrics: Metrics, reward: _Mean) -> Found:
    best = case.memory.best[""]
    limit = max(FALL * math.hypot(reward.error, best["error"]), case.settings.collapse * abs(best["value"]))
    if (fall := best["value"] - reward.value) > limit:
        what = f"held-out reward {reward.value:.3g}, which is {fall:.3g} below its best {best['value']:.3g}"
        yield "collapse", Finding(what, int(best["iteration"]), _level(fall / limit) if limit else 1)


def _drift_heldout(case: Case, iteration: int, metrics: Metrics, reward: _Mean) -> Found:
    base = case.memory.base
    if reward.value - base["value"] > RISE * math.hypot(reward.error, base["error"]):
        rise = f"the held-out reward rose {base['value']:.3g} -> {reward.value:.3g}"
        now = {name: value for name, value in metrics.items() if math.isfinite(value)}
        yield from _drifted(case, rise, base["statistics"], now, base["iteration"])


def _witnesses(case: Case, iteration: int, metrics: Metrics, reward: _Mean) -> Found:
    """A witness below its best although the trained reward has risen since."""
    for name in _witness_names(case):
        best, mean = case.memory.best.get(name), _mean(name, metrics)
        if best is None or not math.isfinite(mean.value):
            continue
        fall, limit = best["value"] - mean.value, FALL * math.hypot(mean.error, best["error"])
        if fall > limit and reward.value - best["reward"] > RISE * math.hypot(reward.error, best["reward_error"]):
            rise = f"the trained reward rose {best['reward']:.3g} -> {reward.value:.3g}"
            what = f"held-out witness {name} {best['value']:.3g} -> {mean.value:.3g} while {rise}"
            yield f"hacking/{name}", Finding(what, int(best["iteration"]), _level(fall / limit) if limit else 1)
