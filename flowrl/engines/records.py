"""What an agent's calls leave for training: rows of tokens, each drawn one with its log-prob.

The calls of an agent come one by one, each with the whole prompt that it was asked with. Where a prompt begins with all
that a row holds, prompt and drawn tokens, the call goes on with that row, and what stands between is given; an agent
that rewrites its history begins a new row. What was drawn is never decoded and encoded again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

NAN = float("nan")


@dataclass(frozen=True)
class Record:
    """One call: the ids of its prompt, the ids that were drawn, their log-probs, and their text.

    cut: whether a limit ended it.
    """

    prompt: list[int]
    ids: list[int]
    logp: list[float]
    text: str = ""
    cut: bool = False


@dataclass
class RecordedRow:
    """A prompt, and behind it what was drawn and given, as ids; logp: NaN of what was given."""

    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)

    def goes_on_with(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt begins with all that the row holds."""
        n, m = len(self.prompt), len(self.ids)
        return len(prompt) >= n + m and list(prompt[:n]) == self.prompt and list(prompt[n : n + m]) == self.ids

    def add(self, record: Record) -> None:
        """Takes a call that goes on with the row."""
        given = record.prompt[len(self.prompt) + len(self.ids) :]
        self.ids += [*given, *record.ids]
        self.logp += [*[NAN] * len(given), *record.logp]


def rows_of(records: Sequence[Record]) -> list[RecordedRow]:
    """The rows of one sample's calls, in the order in which they began. Each drawn token stands in exactly one.

    A call that could go on with several rows goes on with the longest.
    """
    rows: list[RecordedRow] = []
    for record in records:
        fitting = [row for row in rows if row.goes_on_with(record.prompt)]
        if not fitting:
            rows.append(RecordedRow(list(record.prompt)))
            fitting = rows[-1:]
        max(fitting, key=lambda row: len(row.prompt) + len(row.ids)).add(record)
    return rows
