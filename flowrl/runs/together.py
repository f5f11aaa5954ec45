"""A run over several ranks: what they agree on between iterations, and who writes its folder.

Rank 0 leads: it owns the clocks, the folder, the console and the trackers. The others hold the same state, read the
folder where a run resumes or rolls back, and write nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole

from flowrl.core.iterate import Iteration
from flowrl.core.ranks import Ranks, whole_means
from flowrl.core.refill import join_samples
from flowrl.runs.console import Console
from flowrl.runs.folder import RunFolder
from flowrl.runs.run_state import RunState
from flowrl.runs.stopping import Stopping
from flowrl.runs.tracking import Tracking
from flowrl.untyped import JSON, Nest
from flowrl.watch.sample_statistics import sample_statistics

OWN = ("scorer", "random")  # parts of a run's state that each rank has for itself


class Follower(RunFolder):
    """The folder of a run on a rank that does not lead: it can be read."""

    def __init__(self, folder: Path):
        self.path, self.tracking = folder, Tracking()

    def position(self) -> dict[str, int]:
        """Nothing: it has no files of its own."""
        return {}

    def _nothing(self, *_: Any, **__: Any) -> None:
        """What the leading rank does."""

    sync = rewind = write = log = alarm = evaluated = begun = ended = summary = report = close_files = close = _nothing


def quiet_console() -> Console:
    """The console of a rank that does not lead."""
    return Console(RichConsole(quiet=True))


def check_stop(stopping: Stopping, ranks: Ranks) -> None:
    """Raises Stopped on every rank if any of them has been asked to stop."""
    if ranks.size > 1:
        asked = [number for number in ranks.gather(stopping.asked) if number is not None]
        stopping.asked = asked[0] if asked else None
    stopping.check()


def measured(result: Iteration, forwards: Mapping[str, int], ranks: Ranks) -> dict[str, float]:
    """What was measured of an iteration over all ranks: how many forwards of each phase, by name, and statistics of its
    samples, which are taken where the pixels are."""
    parts = ranks.gather({name: forwards.get(name, 0) for name in ("rollout", "train")})
    counts = {f"forwards/{name}": float(sum(part[name] for part in parts)) for name in parts[0]}
    if result.own is None:
        return counts | sample_statistics(result.samples)
    own = join_samples(result.own) if result.own else None
    return counts | whole_means({} if own is None else sample_statistics(own), 0 if own is None else len(own), ranks)


def own_states(state: RunState, ranks: Ranks) -> dict[str, Nest]:
    """For a mark: of every rank, the parts of its state that are its own; nothing where there is but one."""
    if ranks.size == 1:
        return {}
    own = {name: state.parts[name].state_dict() for name in OWN if name in state.parts}
    return {"ranks": ranks.gather(own)}


def restore_own(state: RunState, mark: Mapping[str, Nest], ranks: Ranks) -> None:
    """Restores the parts that are a rank's own, where as many ranks had made the mark."""
    saved: Sequence[Mapping[str, JSON]] = mark.get("ranks") or ()
    if len(saved) == ranks.size > 1:
        for name, value in saved[ranks.rank].items():
            state.parts[name].load_state_dict(value)
