"""What is wrong with a run, read off its numbers: the rules of a training iteration and of a held-out evaluation.

A rule yields (alarm, Finding) as long as its condition holds; watch.py decides what rings, and its table says in words
what is coded here. Medians over a few iterations stand for a value, so that one odd batch rings nothing.
"""

import math
from statistics import median
from typing import Any

from flowrl.watch import hacking
from flowrl.watch.hacking import FALL, SPREADS, Mean, furthest, level
from flowrl.watch.history import KL_BEFORE, KL_NOW, KL_SEEN, REWARD, Finding, Found, Metrics, RunHistory

REPLAY_LIMITS = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.05}  # of a log-ratio that should be 0
TINY = 1e-12  # a gradient norm that is as good as 0


def in_training(case: RunHistory, iteration: int, metrics: Metrics) -> dict[str, Finding]:
    """All that is wrong after a training iteration."""
    case.remember(metrics)
    rules = (_nonfinite, _replay, _no_gradient, _silent, _clip, _kl, _drift, _spread)
    return {name: finding for rule in rules for name, finding in rule(case, iteration, metrics)}


def held_out(case: RunHistory, iteration: int, metrics: Metrics) -> dict[str, Finding]:
    """All that is wrong after an evaluation. The first is the base of the later ones."""
    reward = hacking.trained(case, metrics)
    if not any(f"{name}/mean" in metrics for name, weight in case.weights.items() if weight):
        return {}  # all that is trained compares samples of a group, and an evaluation draws one a prompt
    if not math.isfinite(reward.value):
        return {"nonfinite": Finding("the held-out reward is not finite: no sample could be scored", iteration)}
    found: dict[str, Finding] = {}
    suspicion = 0.0
    if case.memory.base:
        suspicion = hacking.index(hacking.signs_of(case, metrics, reward))
        for rule in (_collapse, hacking.findings):
            found |= dict(rule(case, iteration, metrics, reward))
    else:
        case.memory.base = _base(case, iteration, metrics, reward)
    hacking.remember_trusted(case, iteration, metrics, reward, suspicion)
    for name, mean in {"": reward, **{n: hacking.mean_of(n, metrics) for n in hacking.witnesses(case)}}.items():
        best = case.memory.best.get(name)
        if math.isfinite(mean.value) and (best is None or mean.value > best["value"]):
            at = {"reward": reward.value, "reward_error": reward.error, "iteration": iteration}
            case.memory.best[name] = mean._asdict() | at
    return found


def _base(case: RunHistory, iteration: int, metrics: Metrics, reward: Mean) -> dict[str, Any]:
    """What later evaluations are compared with."""
    statistics = {k: v for k, v in metrics.items() if k.startswith("samples/") and math.isfinite(v)}
    means = {name: list(hacking.mean_of(name, metrics)) for name in hacking.witnesses(case)}
    scored = {name: mean for name, mean in means.items() if all(map(math.isfinite, mean))}
    return {"iteration": iteration, "statistics": statistics, "witnesses": scored, **reward._asdict()}


# what lasts


def _persisting(case: RunHistory, name: str, holds: bool | None, what: str, iteration: int, times: int = 1) -> Found:
    begun, length = case.streak(name, holds, iteration)
    if length >= times * case.settings.patience:
        yield name, Finding(f"{what} for {length} iterations", begun)


def _at_once(case: RunHistory, name: str, holds: bool | None, what: str, iteration: int) -> Found:
    begun, length = case.streak(name, holds, iteration)
    if holds:
        lasting = length >= case.settings.patience
        yield name, Finding(what, begun, 2 if lasting else 1, grave=lasting)


def _nonfinite(case: RunHistory, iteration: int, metrics: Metrics) -> Found:
    bad = [name for name, value in metrics.items() if not math.isfinite(value) and not _unscored(name, metrics)]
    what = f"{', '.join(bad[:3])}{f' and {len(bad) - 3} more' if len(bad) > 3 else ''} not finite"
    if skipped := metrics.get("nonfinite_updates", 0.0):
        what = f"{skipped:.0%} of the updates were skipped, their gradient was not finite"
    yield from _at_once(case, "nonfinite", bool(bad or skipped), what, iteration)


def _unscored(name: str, metrics: Metrics) -> bool:
    """Whether a metric belongs to a reward that could score no sample."""
    return name.startswith("reward/") and metrics.get(f"{name.rpartition('/')[0]}/nan") == 1.0


def _replay(case: RunHistory, iteration: int, metrics: Metrics) -> Found:
    gap, limit = metrics.get("replay_gap_max"), min(min(case.clip) / 2, REPLAY_LIMITS[case.precision])
    what = f"log-ratio {gap} before any update, where {limit:.2g} is the most that numerics explain or the clip bears"
    yield from _at_once(case, "replay", None if gap is None else gap > limit, what, iteration)


def _no_gradient(case: RunHistory, iteration: int, metrics: Metrics) -> Found:
    norm = metrics.get("grad_norm")
    holds = None if norm is None else norm < TINY and metrics.get("adv/abs_mean", 1.0) > 0
    yield from _persisting(case, "no_gradient", holds, "gradient norm 0 in spite of advantages", iteration)


def _silent(case: RunHistory, iteration: int, metrics: Metrics) -> Found:
    size = metrics.get("adv/abs_mean", 1.0 - metrics.get("groups/zero_variance", 0.0))
    yield from _persisting(case, "silent", size == 0, "all advantages 0", iteration)


def _clip(case: RunHistory, iteration: int, metrics: Metrics) -> Found:
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


def _kl(case: RunHistory, iteration: int, metrics: Metrics) -> Found:
    for name in ("kl", "approx_kl"):
        values = case.memory.recent.get(name, [])
        if name not in metrics or case.memory.seen.get(name, 0) < KL_SEEN:
            continue
        before, now = median(values[-KL_NOW - KL_BEFORE : -KL_NOW]), median(values[-KL_NOW:])
        if before > 0 and now > case.settings.kl * before:
            what = f"{name} {now:.3g}, {now / before:.3g} times its running median {before:.3g}"
            yield "kl", Finding(what, iteration - KL_NOW + 1, level(now / before / case.settings.kl))
    # an explosion may end all learning within one iteration: no median here
    now, limit = metrics.get("approx_kl", 0.0), min(1.0, max(1e-5, 5e3 * max(case.clip) ** 2))
    if limit < now < math.inf:
        what = f"approx_kl {now:.3g} within one rollout, expected below {limit:.3g}"
        yield "kl", Finding(what, iteration, level(now / limit))


def _drift(case: RunHistory, iteration: int, metrics: Metrics) -> Found:
    first, now = case.medians()
    if REWARD in now and now[REWARD] > max(case.memory.first[REWARD]):
        size, told = furthest(first, now, case.settings.drift)
        what = f"{told} while the reward rose {first[REWARD]:.3g} -> {now[REWARD]:.3g}"
        if size > 1:
            yield "hacking", Finding(what, iteration - case.settings.patience + 1, level(size))


def _spread(case: RunHistory, iteration: int, metrics: Metrics) -> Found:
    first, now = case.medians()
    share, since = case.settings.diversity, iteration - case.settings.patience + 1
    for name in SPREADS if case.steady else ():
        if name in now and now[name] < share * first[name]:
            what = f"{name} within groups {first[name]:.3g} -> {now[name]:.3g}"
            yield "diversity", Finding(what, since, level(share * first[name] / max(now[name], 1e-9)))


# held out


def _collapse(case: RunHistory, iteration: int, metrics: Metrics, reward: Mean) -> Found:
    best = case.memory.best[""]
    limit = max(FALL * math.hypot(reward.error, best["error"]), case.settings.collapse * abs(best["value"]))
    if (fall := best["value"] - reward.value) > limit:
        what = f"held-out reward {reward.value:.3g}, which is {fall:.3g} below its best {best['value']:.3g}"
        yield "collapse", Finding(what, int(best["iteration"]), level(fall / limit) if limit else 1)
