"""The watchdog of a run: reads its metrics and raises alarms. It knows no model, tensor or file.

alarm        read from   rings when                                                                 at most
nonfinite    both        a metric is NaN or infinite, or an update was skipped: at once a warning,
                         graver when it has lasted `patience` iterations                            rollback
replay       train       the log-ratio of the first update exceeds half the clip range, or what the
                         precision explains: at once a warning, graver when it has lasted           stop
mismatch     train       who trains and who sampled differ by an estimated 0.02 nats a decision, less where
                         clip ranges are small, or half of the samples count for nothing (ess below
                         1/2): at once a warning, graver when it has lasted `patience` iterations    stop
no_gradient  train       gradient norm 0 in spite of advantages, `patience` iterations in a row     stop
silent       train       all advantages 0, `patience` iterations in a row                           warn
clip_all     train       over 90 % of decisions outside the clip, `patience` iterations in a row    rollback
clip_none    train       none ever outside, 10 x `patience` iterations in a row; not where a rollout
                         has one update, which the clip cannot touch                                warn
kl           train       kl or approx_kl beyond `kl` times its running median (three iterations), or
                         once an approx_kl as of log-ratios a hundred times the clip range          rollback
old_distance train       old_distance beyond `kl` times its running median (three iterations)      rollback
gradient     train       the gradient norm exceeds three times its running median: at once a
                         warning, graver when the reward falls below all of the ten iterations
                         before, then or until the alarm has been quiet for `patience` iterations   rollback
chance       train       of pairs, the implicit accuracy of thirteen iterations is no better than
                         chance, and their margin not above 0                                       stop
displacement train       of pairs, the error of the better sample is a twentieth above that of the
                         weights it is compared with (thirteen iterations)                          rollback
calls        train       conversations have a quarter of the calls of tools that they had at first,
                         medians of `patience` iterations                                           rollback
collapse     held out    the trained reward is below its best by three standard errors and by the
                         share `collapse` of it                                                     rollback
hacking      both        the trained reward has risen while a statistic of the samples left its band
                         (`drift`), or, held out, while a witness fell from its best; or has come
                         down again, no lower than it began, while a witness fell below its start;
                         or several weaker signs add up to a hack index of 1/2 (hacking.py)         rollback
diversity    train       samples of a group are less than `diversity` times as far apart, or as often
                         different, as at first                                                     rollback

"At most" bounds `on_alarm`: warn lets the run continue, stop ends it, rollback returns to the best checkpoint and
lowers the learning rate. Where going back cures nothing, rollback means stop, and so it does after `rollbacks` of them.
silent and clip_none never do more than warn: a solved task is silent, and a small step is no fault.

If `on_hack` is set, it says what is done about hacking. Its rollback returns to the checkpoint with the best witness,
since the one with the best reward may be the most hacked, and ends the run: training on would only repeat it.

An alarm rings when it begins, again each time it gets worse by a factor of two (or has lasted), and anew only after it
has been quiet for `patience` iterations, or for one evaluation.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flowrl.watch.alarms import ALARMS, Alarm, AlarmKind, milder
from flowrl.watch.hacking import HeldoutMean, hack_metrics
from flowrl.watch.history import Finding, Metrics, RunHistory, WatchSettings, WatchState
from flowrl.watch.rules import OwnRule, heldout_findings, training_findings


class Watchdog:
    """The watchdog of one run; metrics must arrive in order of iteration.

    weights: of every reward, 0 for a witness. updates_per_rollout: optimizer steps per iteration. clip: the clip range
    (low, high). precision: of the forward pass, float32, bfloat16 or float16. steady: whether every iteration draws
    alike; if a window moves over the steps, the distance within a group changes with it and is not judged. rules: the
    user's own, judged after every training iteration.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        settings: WatchSettings | None = None,
        *,
        updates_per_rollout: int,
        clip: tuple[float, float],
        precision: str = "float32",
        steady: bool = True,
        rules: Sequence[OwnRule] = (),
    ):
        self.settings, self.rules = settings or WatchSettings(), tuple(rules)
        self.history = RunHistory(dict(weights), self.settings, updates_per_rollout, clip, precision, steady)

    def after_iteration(self, iteration: int, metrics: Metrics) -> list[Alarm]:
        """The alarms that ring after a training iteration with these metrics."""
        return self._raise_alarms(
            "train", iteration, training_findings(self.history, iteration, metrics, self.rules), self.settings.patience
        )

    def after_evaluation(
        self, iteration: int, metrics: Metrics, rises: Mapping[int, HeldoutMean] | None = None
    ) -> list[Alarm]:
        """The alarms that ring after a held-out evaluation with these metrics; the first evaluation is the base.

        rises: iteration of an earlier evaluation -> rise of the trained reward since, of pairs, where these are known.
        """
        return self._raise_alarms(
            "heldout", iteration, heldout_findings(self.history, iteration, metrics, rises or {}), 1
        )

    def hack_metrics(self, metrics: Metrics, rises: Mapping[int, HeldoutMean] | None = None) -> dict[str, float]:
        """hack_index and its components for an evaluation that `after_evaluation`, given the same, has not seen."""
        return hack_metrics(self.history, metrics, rises or {})

    @property
    def hack_action(self) -> str:
        """What the run does about reward hacking."""
        return self.settings.on_hack or self.settings.on_alarm

    @property
    def trusted(self) -> int | None:
        """The iteration whose evaluation had the best witness so far; None before the first."""
        records = self.history.state.trusted
        return int(records[-1][0]) if records else None

    @property
    def has_witnesses(self) -> bool:
        """Whether there are witnesses that the first evaluation could score."""
        return bool(self.history.state.base.get("witnesses"))

    def state_dict(self) -> dict[str, Any]:
        """Everything the watchdog remembers, as values for strict JSON."""
        return asdict(self.history.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from a saved state, which is not modified."""
        self.history.state = WatchState(**json.loads(json.dumps(dict(state), allow_nan=False)))

    def roll_back(self, state: Mapping[str, Any], left: int | None = None) -> None:
        """Continues from the state saved with the checkpoint that the run returned to, and counts the rollback.

        The best witness stays known, as its checkpoint does, except that of iteration `left`, whose weights are lost.
        """
        rollbacks, trusted = self.history.state.rollbacks + 1, self.history.state.trusted
        self.load_state_dict(state)
        self.history.state.rollbacks = rollbacks
        self.history.state.trusted = [record for record in trusted if record[0] != left]

    def _raise_alarms(self, source: str, iteration: int, findings: Mapping[str, Finding], patience: int) -> list[Alarm]:
        """Alarms for the findings that are new or worse; an active alarm without a finding is quieter by one."""
        active = self.history.state.active
        for key in [k for k in active if k.startswith(f"{source}/") and k.removeprefix(f"{source}/") not in findings]:
            active[key][1] += 1
            if active[key][1] >= patience:
                del active[key]
        alarms = []
        for name, finding in findings.items():
            worst, _ = active.get(f"{source}/{name}", [0, 0])
            active[f"{source}/{name}"] = [max(worst, finding.level), 0]
            kind = name.partition("/")[0]
            if finding.level > worst and kind not in self.settings.ignore:
                alarms.append(self._alarm(kind, iteration, finding))
        return alarms

    def _alarm(self, name: str, iteration: int, finding: Finding) -> Alarm:
        kind = ALARMS[name] if name in ALARMS else self._own_kind(name)
        strongest, chosen, to = kind.strongest if finding.grave else "warn", self.settings.on_alarm, None
        if name == "hacking":
            chosen = self.hack_action
            strongest = "stop" if self.trusted is None else strongest
        elif self.history.state.rollbacks >= self.settings.rollbacks:
            strongest = milder(strongest, "stop")
        action = milder(chosen, strongest)
        if name == "hacking" and action == "rollback":
            to = self.trusted
        return Alarm(name, iteration, finding.since, finding.what, kind.cause, kind.remedy, action, to)

    def _own_kind(self, name: str) -> AlarmKind:
        rule = next(rule for rule in self.rules if rule.alarm == name)
        return AlarmKind("rollback", f"what the rule {rule.path} looks for", "see there")
