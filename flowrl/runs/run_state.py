"""The state of a run between two iterations, besides its weights and its learner."""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Protocol

import numpy
import torch

from flowrl.recipe.schema import Train
from flowrl.runs import checkpoints
from flowrl.untyped import Nest


class Stateful(Protocol):
    """A part of a run with a state to save and restore."""

    def state_dict(self) -> dict[str, Nest]:
        """Everything that changes during the run, as nested dicts and lists of numbers, texts and tensors."""
        ...

    def load_state_dict(self, state: dict[str, Nest]) -> None:
        """Restores what `state_dict` returned."""
        ...


class GlobalGenerators:
    """The global random generators. A run does not use them itself; a user's reward may."""

    def state_dict(self) -> dict[str, Nest]:
        """Their states."""
        return checkpoints.random_state()

    def load_state_dict(self, state: dict[str, Nest]) -> None:
        """Restores their states."""
        checkpoints.restore_random_state(state)


def seed_generators(seed: int) -> None:
    """Lets the global generators begin anew; seed: at least 0, below 2**32."""
    torch.manual_seed(seed)
    numpy.random.seed(seed)
    random.seed(seed)


def plain_bytes(state: Nest) -> bytes:
    """A state as bytes, equal for equal values."""
    if isinstance(state, torch.Tensor):
        return state.numpy().tobytes()
    if isinstance(state, Mapping):
        return b"".join(f"{name}:".encode() + plain_bytes(value) for name, value in state.items())
    if isinstance(state, list | tuple):
        return b"".join(plain_bytes(value) + b"," for value in state)
    return repr(state).encode()


@dataclass
class RunState:
    """Saved with every checkpoint and restored by a resume; a new field is one line here and none elsewhere.

    parts: objects with a state of their own, by the name under which it is saved; restored in this order. A field that
    a checkpoint lacks keeps its default. Lists are restored as tuples.
    """

    parts: Mapping[str, Stateful]
    iteration: int = 0  # iterations done so far
    evaluated: tuple[int, ...] = ()  # iterations after which there was an evaluation
    best: tuple[int, float] | None = None  # iteration and value of the best held-out reward
    seconds: float = 0.0  # of wall time, before this process
    spent: tuple[float, int] = (0.0, 0)  # seconds of iterations; multiples of eval.every_seconds already evaluated
    rolled_back: dict[str, Nest] | None = (
        None  # why the alarm `hacking` ended the run, and the iteration it returned to
    )
    _started: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        """Seconds of wall time, over all processes that worked on this run."""
        return self.seconds + time.perf_counter() - self._started

    def ended(self, train: Train) -> bool:
        """Whether all iterations are done, the time limit is reached, or an alarm has ended the run."""
        in_time = train.seconds is None or self.spent[0] < train.seconds
        return self.rolled_back is not None or self.iteration >= train.iterations or not in_time

    def state_dict(self) -> dict[str, Nest]:
        """Every field, the time so far, and the states of the parts."""
        own = {name: getattr(self, name) for name in self._saved()}
        return own | {"seconds": self.elapsed} | {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Nest]) -> None:
        """Restores a saved state in this object and in its parts."""
        for name in self._saved():
            if name in state:
                value = state[name]
                setattr(self, name, tuple(value) if isinstance(value, list) else value)
        for name, part in self.parts.items():
            if name in state:  # a store that a resumed run begins with is empty
                part.load_state_dict(state[name])

    def _saved(self) -> list[str]:
        return [f.name for f in fields(self) if f.name != "parts" and not f.name.startswith("_")]
