"""The rules that find problems in a run's metrics, after a training iteration and after a held-out evaluation.

A rule yields (alarm, Finding) as long as its condition holds; watchdog.py decides what rings, and its table describes
the rules in words. Medians over a few iterations are judged, so that one odd batch raises no alarm.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowrl.watch import hacking
from flowrl.watch.hacking import FALL, SPREADS, HeldoutMean, TrainedReward, largest_drift, severity_level
from flowrl.watch.history import KL_BEFORE, KL_NOW, KL_SEEN, REWARD, Finding, Findings, Metrics, RunHistory

REPLAY_LIMITS = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.05}  # of a log-ratio that should be 0
APART, LEAST_SHARE = 0.02, 0.5  # k3 of who sampled and who trains, a decision; effective share of decisions
TINY = 1e-12  # a gradient norm below it counts as 0
GROWTH = 3.0  # times its running median that a gradient norm may reach; healthy runs stay below 2.5
CALLING, LEFT = 0.05, 0.25  # calls a conversation that are worth watching; share of them that has to remain
DISPLACED = 0.05  # share by which the error of the better sample of a pair may rise


@dataclass(frozen=True)
class OwnRule:
    """A rule of the user's own. check: of an iteration's metrics, what is wrong, in words, or None. path: its place.

    Its alarm rings once the rule has found something in `patience` iterations in a row.
    """

    alarm: str
    check: Callable[[Metrics], str | None]
    path: str

    def findings(self, history: RunHistory, iteration: int, metrics: Metrics) -> Findings:
        """What it finds. Raises ValueError, naming the rule, where it gives anything but a text or None."""
        what = self.check(metrics)
        if what is not None and not isinstance(what, str):
            raise ValueError(f"watch.rules: {self.path} gives {what!r}; accepted: a text or None")
        yield from _when_persistent(history, self.alarm, what is not None, what or "", iteration)


def training_findings(
    history: RunHistory, iteration: int, metrics: Metrics, own: Sequence[OwnRule] = ()
) -> dict[str, Finding]:
    """All findings after a training iteration; own: rules beside those that ship."""
    history.remember(metrics)
    rules = (_nonfinite, _replay, _mismatch, _no_gradient, _silent, _clip, _kl, _old_distance, _gradient)
    rules += (_chance, _displacement, _drift, _diversity, _calls)
    rules += tuple(rule.findings for rule in own)
    return {name: finding for rule in rules for name, finding in rule(history, iteration, metrics)}


def heldout_findings(
    history: RunHistory, iteration: int, metrics: Metrics, rises: Mapping[int, HeldoutMean]
) -> dict[str, Finding]:
    """All findings after an evaluation. The first evaluation is the base of the later ones.

    rises: see TrainedReward.
    """
    reward = hacking.trained_reward(history, metrics, rises)
    if not any(f"{name}/mean" in metrics for name, weight in history.weights.items() if weight):
        return {}  # every trained reward compares samples of a group, and an evaluation draws one per prompt
    if not math.isfinite(reward.value):
        return {"nonfinite": Finding("the held-out reward is not finite: no sample could be scored", iteration)}
    findings: dict[str, Finding] = {}
    suspicion = 0.0
    if history.state.base:
        suspicion = hacking.hack_index(hacking.find_signs(history, metrics, reward))
        for rule in (_collapse, hacking.hacking_findings):
            findings |= dict(rule(history, iteration, metrics, reward))
        hacking.remember_peak(history, iteration, reward)
    else:
        history.state.base = _base_record(history, iteration, metrics, reward)
    hacking.remember_trusted(history, iteration, metrics, reward, suspicion)
    for name, mean in {
        "": HeldoutMean(reward.value, reward.error),
        **{n: hacking.heldout_mean(n, metrics) for n in hacking.witness_names(history)},
    }.items():
        best = history.state.best.get(name)
        if math.isfinite(mean.value) and (best is None or mean.value > best["value"]):
            at = {"reward": reward.value, "reward_error": reward.error, "iteration": iteration}
            history.state.best[name] = mean._asdict() | at
    return findings


def _base_record(history: RunHistory, iteration: int, metrics: Metrics, reward: TrainedReward) -> dict[str, Any]:
    """What later evaluations are compared with."""
    statistics = {k: v for k, v in metrics.items() if k.startswith("samples/") and math.isfinite(v)}
    means = {name: list(hacking.heldout_mean(name, metrics)) for name in hacking.witness_names(history)}
    scored = {name: mean for name, mean in means.items() if all(map(math.isfinite, mean))}
    return {
        "iteration": iteration,
        "statistics": statistics,
        "witnesses": scored,
        "value": reward.value,
        "error": reward.error,
    }


# conditions that last


def _when_persistent(
    history: RunHistory, name: str, holds: bool | None, what: str, iteration: int, times: int = 1
) -> Findings:
    begun, length = history.streak(name, holds, iteration)
    if length >= times * history.settings.patience:
        yield name, Finding(f"{what} for {length} iterations", begun)


def _when_it_holds(history: RunHistory, name: str, holds: bool | None, what: str, iteration: int) -> Findings:
    begun, length = history.streak(name, holds, iteration)
    if holds:
        lasting = length >= history.settings.patience
        yield name, Finding(what, begun, 2 if lasting else 1, grave=lasting)


def _nonfinite(history: RunHistory, iteration: int, metrics: Metrics) -> Findings:
    bad = [name for name, value in metrics.items() if not math.isfinite(value) and not _is_unscored(name, metrics)]
    what = f"{', '.join(bad[:3])}{f' and {len(bad) - 3} more' if len(bad) > 3 else ''} not finite"
    if skipped := metrics.get("nonfinite_updates", 0.0):
        what = f"{skipped:.0%} of the updates were skipped because their gradient was not finite"
    yield from _when_it_holds(history, "nonfinite", bool(bad or skipped), what, iteration)


def _is_unscored(name: str, metrics: Metrics) -> bool:
    """Whether a metric belongs to a reward that could score no sample."""
    return name.startswith("reward/") and metrics.get(f"{name.rpartition('/')[0]}/nan") == 1.0


def _replay(history: RunHistory, iteration: int, metrics: Metrics) -> Findings:
    gap, limit = metrics.get("replay_gap_max"), min(min(history.clip) / 2, REPLAY_LIMITS[history.precision])
    what = f"log-ratio {gap} before any update, but rounding and the clip range explain at most {limit:.2g}"
    yield from _when_it_holds(history, "replay", None if gap is None else gap > limit, what, iteration)


def _mismatch(history: RunHistory, iteration: int, metrics: Metrics) -> Findings:
    apart, share = metrics.get("mismatch/k3"), metrics.get("mismatch/ess", 1.0)
    limit = min(APART, 100 * min(history.clip) ** 2)
    gap = f"{apart or 0.0:.3g} nats per decision (accepted: {limit:.2g})"
    what = f"the trained policy and the one that sampled differ by {gap}"
    if apart is not None and apart <= limit:
        what = f"the effective share of the decisions under the trained policy is {share:.0%}"
    holds = None if apart is None else apart > limit or share < LEAST_SHARE
    yield from _when_it_holds(history, "mismatch", holds, what, iteration)


def _no_gradient(history: RunHistory, iteration: int, metrics: Metrics) -> Findings:
    norm = metrics.get("grad_norm")
    holds = None if norm is None else norm < TINY and metrics.get("adv/abs_mean", 1.0) > 0
    yield from _when_persistent(
        history, "no_gradient", holds, "gradient norm 0 although there are advantages", iteration
    )


def _silent(history: RunHistory, iteration: int, metrics: Metrics) -> Findings:
    size = metrics.get("adv/abs_mean", 1.0 - metrics.get("groups/zero_variance", 0.0))
    yield from _when_persistent(history, "silent", size == 0, "all advantages 0", iteration)


def _clip(history: RunHistory, iteration: int, metrics: Metrics) -> Findings:
    """On the first update of a rollout nothing is outside the clip, so the share is that of the other updates."""
    updates = history.updates - metrics.get("empty_updates", 0)
    outside = metrics.get("outside_frac", metrics.get("clip_frac", math.nan))
    known = math.isfinite(outside) and updates > 1
    share = outside * updates / (updates - 1) if known else 0.0
    what = f"{share:.0%} of decisions outside the clip range"
    yield from _when_persistent(history, "clip_all", share > 0.9 if known else None, what, iteration)
    none = "no decision outside the clip range"
    yield from _when_persistent(history, "clip_none", share == 0 if known else None, none, iteration, times=10)


# metrics that move


def _kl(history: RunHistory, iteration: int, metrics: Metrics) -> Findings:
    for name in ("kl", "approx_kl"):
        yield from _beyond_running_median(history, "kl", name, iteration, metrics)
    # an explosion can end all learning within one iteration: no median here
    now, limit = metrics.get("approx_kl", 0.0), min(1.0, max(1e-5, 5e3 * max(history.clip) ** 2))
    if limit < now < math.inf:
        what = f"approx_kl {now:.3g} within one rollout, expected below {limit:.3g}"
        yield "kl", Finding(what, iteration, severity_level(now / limit))


def _old_distance(history: RunHistory, iteration: int, metrics: Metrics) -> Findings:
    yield from _beyond_running_median(history, "old_distance", "old_distance", iteration, metrics, KL_BEFORE + KL_NOW)


def _beyond_running_median(
    history: RunHistory, alarm: str, name: str, iteration: int, metrics: Metrics, needed: int = KL_SEEN
) -> Findings:
    if not _is_known(history, name, metrics, needed):
        return
    before, now = history.running(name)
    if before > 0 and now > history.settings.kl * before:
        what = f"{name} {now:.3g}, {now / before:.3g} times its running median {before:.3g}"
        yield alarm, Finding(what, iteration - KL_NOW + 1, severity_level(now / before / history.settings.kl))


def _gradient(history: RunHistory, iteration: int, metrics: Metrics) -> Findings:
    """The norm grows first, and the reward may fall only once it has grown: while the alarm is active."""
    if not _is_known(history, "grad_norm", metrics, KL_BEFORE + KL_NOW):
        return
    before, now = history.running("grad_norm")
    grows = now > GROWTH * before > 0
    rewards = history.state.recent.get(REWARD, [])[-KL_BEFORE - KL_NOW :]
    falls = len(rewards) == KL_BEFORE + KL_NOW and max(rewards[-KL_NOW:]) < min(rewards[:-KL_NOW])
    what = f"gradient norm {now:.3g}, {now / before:.3g} times its running median {before:.3g}" if grows else ""
    if falls and (grows or "train/gradient" in history.state.active):
        past, reward = history.running(REWARD)
        what = f"{what or f'gradient norm {now:.3g}, after it grew'}, while the reward fell {past:.3g} -> {reward:.3g}"
        yield "gradient", Finding(what, iteration - KL_NOW + 1, 2)
    elif grows:
        yield "gradient", Finding(what, iteration - KL_NOW + 1, grave=False)


def _chance(history: RunHistory, iteration: int, metrics: Metrics) -> Findings:
    """The margin is judged too: pairs tie where the weights are compared with themselves, and a tie counts as wrong."""
    if not (_is_known(history, "implicit_accuracy", metrics) and _is_known(history, "margin", metrics)):
        return
    accuracy, margin = history.lately("implicit_accuracy"), history.lately("margin")
    if accuracy <= 0.5 and margin <= 0 and any(history.state.recent["margin"]):
        what = f"implicit accuracy {accuracy:.3g} and margin {margin:.3g}, medians of {KL_BEFORE + KL_NOW} iterations"
        yield "chance", Finding(what, iteration - KL_BEFORE - KL_NOW + 1)


def _displacement(history: RunHistory, iteration: int, metrics: Metrics) -> Findings:
    if not (_is_known(history, "winner_error", metrics) and _is_known(history, "winner_rise", metrics)):
        return
    error, rise = history.lately("winner_error"), history.lately("winner_rise")
    limit = DISPLACED * (error - rise)
    if 0 < limit < rise:
        what = (
            f"the error of the better samples is {error:.3g}, {rise:.3g} above that of the weights it is compared with"
        )
        yield "displacement", Finding(what, iteration - KL_BEFORE - KL_NOW + 1, severity_level(rise / limit))


def _is_known(history: RunHistory, name: str, metrics: Metrics, needed: int = KL_SEEN) -> bool:
    """Whether a metric is there and was there often enough for its medians to say something."""
    return name in metrics and history.state.seen.get(name, 0) >= needed


def _drift(history: RunHistory, iteration: int, metrics: Metrics) -> Findings:
    first, now = history.medians()
    if REWARD in now and now[REWARD] > max(history.state.first[REWARD]):
        size, moved = largest_drift(first, now, history.settings.drift)
        what = f"{moved} while the reward rose {first[REWARD]:.3g} -> {now[REWARD]:.3g}"
        if size > 1:
            yield "hacking", Finding(what, iteration - history.settings.patience + 1, severity_level(size))


def _diversity(history: RunHistory, iteration: int, metrics: Metrics) -> Findings:
    first, now = history.medians()
    share, since = history.settings.diversity, iteration - history.settings.patience + 1
    for name in SPREADS if history.steady else ():
        if name in now and now[name] < share * first[name]:
            what = f"{name} within groups {first[name]:.3g} -> {now[name]:.3g}"
            yield "diversity", Finding(what, since, severity_level(share * first[name] / max(now[name], 1e-9)))


def _calls(history: RunHistory, iteration: int, metrics: Metrics) -> Findings:
    first, now = history.medians()
    if (name := "talk/calls") in now and first[name] >= CALLING and now[name] < LEFT * first[name]:
        what = f"calls per conversation {first[name]:.3g} -> {now[name]:.3g}: the model stops using its tools"
        since = iteration - history.settings.patience + 1
        yield "calls", Finding(what, since, severity_level(LEFT * first[name] / max(now[name], 1e-3)))


# held out


def _collapse(history: RunHistory, iteration: int, metrics: Metrics, reward: TrainedReward) -> Findings:
    best = history.state.best[""]
    limit = max(FALL * math.hypot(reward.error, best["error"]), history.settings.collapse * abs(best["value"]))
    if (fall := best["value"] - reward.value) > limit:
        what = f"held-out reward {reward.value:.3g}, which is {fall:.3g} below its best {best['value']:.3g}"
        yield "collapse", Finding(what, int(best["iteration"]), severity_level(fall / limit) if limit else 1)
