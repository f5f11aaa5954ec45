"""What a watch knows of its run, and what it remembers: plain numbers, fit for strict JSON."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

Metrics = Mapping[str, float]

KL_SEEN, KL_BEFORE, KL_NOW = 20, 10, 3  # values that must have been seen, those of the running median, those judged
REWARD = "reward/total/mean"


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
    on_hack: str | None = None
    kl_to_base: float | None = None


class Finding(NamedTuple):
    """Something wrong. level 1, 2, 3 ...: worse by a factor of two each. grave: whether `on_alarm` applies."""

    what: str
    since: int
    level: int = 1
    grave: bool = True


Found = Iterator[tuple[str, Finding]]


@dataclass
class WatchState:
    """What a watch remembers: plain lists, dicts and finite numbers."""

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
    settings: Settings
    updates: int
    clip: tuple[float, float]
    precision: str
    steady: bool
    memory: WatchState = field(default_factory=WatchState)

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

    def medians(self) -> tuple[dict[str, float], dict[str, float]]:
        """Of each metric over the first and over the latest `patience` iterations, once these are different ones."""
        patience, memory = self.settings.patience, self.memory
        ready = [name for name in memory.first if memory.seen[name] >= 2 * patience]
        first = {name: median(memory.first[name]) for name in ready}
        return first, {name: median(memory.recent[name][-patience:]) for name in ready}
