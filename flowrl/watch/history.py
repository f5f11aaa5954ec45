"""What the watchdog knows about its run and remembers of it: plain numbers that strict JSON can hold."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

Metrics = Mapping[str, float]

KL_SEEN, KL_BEFORE, KL_NOW = 20, 10, 3  # values needed before judging, values of the running median, values judged
REWARD = "reward/total/mean"
REMEMBERED = (
    *("kl", "approx_kl", REWARD, "grad_norm", "old_distance"),
    *("implicit_accuracy", "margin", "winner_error", "winner_rise"),
    "talk/calls",
)


@dataclass(frozen=True)
class WatchSettings:
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
    on_hack: str | None = None
    kl_to_base: float | None = None


class Finding(NamedTuple):
    """A problem found by a rule. level: 1, 2, 3 ..., one more per factor of two. grave: whether `on_alarm` applies."""

    what: str
    since: int
    level: int = 1
    grave: bool = True


Findings = Iterator[tuple[str, Finding]]


@dataclass
class WatchState:
    """What the watchdog remembers: plain lists, dicts and finite numbers. The names are keys of checkpoints."""

    first: dict[str, list[float]] = field(default_factory=dict)  # metric -> its first `patience` values
    recent: dict[str, list[float]] = field(default_factory=dict)  # metric -> its latest values
    seen: dict[str, int] = field(default_factory=dict)  # metric -> how many values
    streaks: dict[str, list[int]] = field(default_factory=dict)  # condition -> [begun at, how often in a row]
    active: dict[str, list[int]] = field(default_factory=dict)  # alarm -> [worst level, quiet for]
    base: dict[str, Any] = field(default_factory=dict)  # the first evaluation: iteration, reward, error, statistics
    best: dict[str, dict[str, float]] = field(default_factory=dict)  # "" or a witness -> where it was best
    trusted: list[list[float]] = field(default_factory=list)  # [iteration, score] of each better witness, rising
    rollbacks: int = 0


@dataclass
class RunHistory:
    """A run as the rules see it. weights: of every reward, 0 for a witness; updates: optimizer steps an iteration."""

    weights: dict[str, float]
    settings: WatchSettings
    updates: int
    clip: tuple[float, float]
    precision: str
    steady: bool
    state: WatchState = field(default_factory=WatchState)

    def remember(self, metrics: Metrics) -> None:
        """Stores the values of which medians are taken."""
        state, patience = self.state, self.settings.patience
        for name, value in metrics.items():
            if (name in REMEMBERED or name.startswith("samples/")) and math.isfinite(value):
                if len(first := state.first.setdefault(name, [])) < patience:
                    first.append(value)
                state.recent[name] = [*state.recent.get(name, []), value][-max(KL_BEFORE + KL_NOW, patience) :]
                state.seen[name] = state.seen.get(name, 0) + 1

    def streak(self, name: str, holds: bool | None, iteration: int) -> tuple[int, int]:
        """(first iteration, number of iterations in a row) of a condition; None neither extends nor ends it."""
        begun, length = self.state.streaks.get(name, [iteration, 0])
        if holds is not None:
            begun, length = (begun if length else iteration, length + 1) if holds else (iteration, 0)
            self.state.streaks[name] = [begun, length]
        return begun, length

    def running(self, name: str) -> tuple[float, float]:
        """A metric's medians: over the KL_BEFORE values before the latest KL_NOW, and over these."""
        values = self.state.recent[name]
        return median(values[-KL_NOW - KL_BEFORE : -KL_NOW]), median(values[-KL_NOW:])

    def lately(self, name: str) -> float:
        """A metric's median over its latest KL_BEFORE + KL_NOW values."""
        return median(self.state.recent[name][-KL_BEFORE - KL_NOW :])

    def medians(self) -> tuple[dict[str, float], dict[str, float]]:
        """Each metric's medians over the first and over the latest `patience` iterations, once these do not overlap."""
        patience, state = self.settings.patience, self.state
        ready = [name for name in state.first if state.seen[name] >= 2 * patience]
        first = {name: median(state.first[name]) for name in ready}
        return first, {name: median(state.recent[name][-patience:]) for name in ready}
