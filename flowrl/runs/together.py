"""A run over several ranks: what they agree on between iterations, and who writes its folder.

Rank 0 leads: it owns the clocks, the folder, the console and the trackers. The others hold the same state, read the
folder where a run resumes or rolls back, and write nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole

from flowrl.contracts import Ranks
from flowrl.core.iterate import Iteration
from flowrl.core.ranked import has_pixels
from flowrl.core.ranks import weighed_means
from flowrl.core.refill import join_samples
from flowrl.runs.checkpoints import random_state, restore_random_state
from flowrl.runs.console import Console
from flowrl.runs.folder import RunFolder
from flowrl.runs.run_state import plain_bytes, seed_generators
from flowrl.runs.stopping import Stopping
from flowrl.runs.tracking import Tracking
from flowrl.untyped import JSON, Nest
from flowrl.watch.sample_statistics import sample_statistics


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


def measured(result: Iteration, forwards: Mapping[str, int], ranks: Ranks, before: int) -> dict[str, float]:
    """The metrics of an iteration, the same on every rank, which judge alarms by them: rank 0's, with what was measured
    over all ranks: how many forwards of each phase, by name; statistics of the samples, those of pixels where these
    are; and the bytes that ranks told each other (`Ranks.gathered`, of which there were `before`)."""
    counts = {name: forwards.get(name, 0) for name in ("rollout", "train")}
    if ranks.size == 1:
        told = {f"forwards/{name}": float(number) for name, number in counts.items()}
        return result.metrics | told | sample_statistics(result.samples)
    own = join_samples(result.own) if result.own and has_pixels(result.own[0]) else None
    statistics = {} if own is None else sample_statistics(own)
    told = result.metrics if ranks.rank == 0 else {}
    parts = ranks.gather((counts, statistics, 0 if own is None else len(own), told))
    metrics = parts[0][3] | {f"forwards/{name}": float(sum(part[0][name] for part in parts)) for name in counts}
    metrics |= weighed_means([part[1:3] for part in parts]) | sample_statistics(result.samples)
    return metrics | {"ranks/bytes": float(ranks.gathered - before)}


class OwnStates:
    """The parts of a run's state that each rank has for itself: generators that its rewards may use.

    A rank tells the others of them only where they have changed.
    """

    def __init__(self, ranks: Ranks, seed: int):
        self._ranks, self._seed = ranks, seed
        self._told, self._known = b"", list[Mapping[str, JSON]]()
        if ranks.rank:
            seed_generators(self._seed_of(0))

    def _seed_of(self, iteration: int) -> int:
        """Of a rank whose generators begin at an iteration."""
        return (self._seed * 1_000_003 + iteration * 1_009 + self._ranks.rank) % 2**32

    def marked(self) -> dict[str, Nest]:
        """For a mark: those of every rank; nothing where there is but one."""
        if self._ranks.size == 1:
            return {}
        own = random_state()
        data = plain_bytes(own)
        parts = self._ranks.gather(None if data == self._told else own)
        self._told, before = data, self._known or parts
        self._known = [old if new is None else new for old, new in zip(before, parts, strict=True)]
        return {"ranks": list(self._known)}

    def restore(self, mark: Mapping[str, Nest]) -> None:
        """Restores them from a mark, also of another number of ranks: each takes what the rank of its number had, and
        one that there was not begins anew, by the seed and the iteration."""
        saved: Sequence[Mapping[str, JSON]] = mark.get("ranks") or ()
        rank = self._ranks.rank
        if rank < len(saved):
            restore_random_state(saved[rank])
        elif rank:
            seed_generators(self._seed_of(mark["iteration"]))
        self._told, self._known = b"", []
