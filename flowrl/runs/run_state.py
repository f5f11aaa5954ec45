"""What a run knows of itself between two iterations, beside its weights and its learner."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from flowrl.recipe.schema import Train
from flowrl.runs import checkpoints


class Stateful(Protocol):
    """A part of a run that saves and restores what it knows."""

    def state_dict(self) -> dict[str, Any]:
        """What changes as the run goes, as nested dicts and lists of numbers, texts and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        ...


class GlobalGenerators:
    """The global random generators. Nothing of a run's own draws from them; a user's reward may."""

    def state_dict(self) -> dict[str, Any]:
        """Where they stand."""
        return checkpoints.random_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Sets them back."""
        checkpoints.restore_random_state(state)


@dataclass
class RunState:
    """Saved with every checkpoint, and restored by a resume: a further field is one line here and none elsewhere.

    parts: objects with a state of their own, by the name it is saved under; they are restored in this order. A field
    that a checkpoint does not have keeps its default. Lists come back as tuples.
    """

    parts: Mapping[str, Stateful]
    iteration: int = 0  # iterations done so far
    evaluated: tuple[int, ...] = ()  # after how many iterations there was an evaluation
    best: tuple[int, float] | None = None  # iteration and value of the best held-out reward
    seconds: float = 0.0  # on the clock, before this process
    spent: tuple[float, int] = (0.0, 0)  # seconds of iterations; multiples of eval.every_seconds that are answered
    rolled_back: dict[str, Any] | None = None  # what the alarm `hacking` ended the run for, and the iteration it is at
    _started: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        """Seconds on the clock, of all processes that worked on this run."""
        return self.seconds + time.perf_counter() - self._started

    def ended(self, train: Train) -> bool:
        """Whether all iterations are done, all the time that they may take is spent, or an alarm has ended the run."""
        in_time = train.seconds is None or self.spent[0] < train.seconds
        return self.rolled_back is not None or self.iteration >= train.iterations or not in_time

    def state_dict(self) -> dict[str, Any]:
        """Every field, the time up to now, and the states of the parts."""
        own = {name: getattr(self, name) for name in self._saved()}
        return own | {"seconds": self.elapsed} | {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a saved state, in this object and in its parts."""
        for name in self._saved():
            if name in state:
                value = state[name]
                setattr(self, name, tuple(value) if isinstance(value, list) else value)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])

    def _saved(self) -> list[str]:
        return [f.name for f in fields(self) if f.name != "parts" and not f.name.startswith("_")]
