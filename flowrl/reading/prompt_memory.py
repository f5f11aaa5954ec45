"""What a run remembers of its prompts: how their samples were rewarded, each time that they were drawn.

It depends on what was observed alone, and is part of the run's checkpoint, so that a resumed run chooses the same
prompts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flowrl.contracts import Prompt
from flowrl.untyped import JSON

Observed = Mapping[str, tuple[float, float]]  # of prompts by id: mean and std of their samples' rewards


@dataclass
class Record:
    """The rewards of one prompt: mean and population std over its samples, an entry for each time it was drawn.

    A std of 0 marks a silent group, whose samples were rewarded alike and taught nothing.
    """

    means: list[float] = field(default_factory=list)
    stds: list[float] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """How often it was drawn and scored."""
        return len(self.means)

    @property
    def mean(self) -> float:
        """Mean reward over all times; NaN before the first."""
        return sum(self.means) / len(self.means) if self.means else float("nan")

    @property
    def silent(self) -> int:
        """How many of the last times in a row its group was silent."""
        return trailing([std == 0 for std in self.stds])


@dataclass(frozen=True)
class Turn:
    """A prompt whose turn it is, as a choice sees it.

    iteration: of those done. rank: the share, in [0, 1), of all prompts that are easier, where the choice says by what
    (`by`); else 0.
    """

    prompt: Prompt
    record: Record
    iteration: int = 0
    rank: float = 0.0


def trailing(hits: Sequence[bool]) -> int:
    """How many of the last entries in a row are true."""
    return next((i for i, hit in enumerate(reversed(hits)) if not hit), len(hits))


class PromptMemory:
    """The records of a run's prompts, by id; those that were never drawn have an empty one."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, prompt: str) -> Record:
        return self._records.get(prompt) or Record()

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def observe(self, observed: Observed) -> None:
        """Adds the rewards of prompts that were drawn; a mean that is NaN, where nothing was scored, is left out."""
        for name, (mean, std) in observed.items():
            if mean == mean:
                record = self._records.setdefault(name, Record())
                record.means.append(mean)
                record.stds.append(std)

    def state_dict(self) -> dict[str, JSON]:
        """By id, means and stds."""
        return {name: [list(r.means), list(r.stds)] for name, r in self._records.items()}

    def load_state_dict(self, state: Mapping[str, JSON]) -> None:
        """Restores what `state_dict` gave."""
        self._records = {name: Record(list(means), list(stds)) for name, (means, stds) in state.items()}
