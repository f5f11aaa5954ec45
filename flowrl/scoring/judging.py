"""What rewards could not score, and whether that is too much: of one process, or of several that judge as one would."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from flowrl.contracts import Samples
from flowrl.scoring.batches import FailureRecord
from flowrl.scoring.results import RewardError, reason, why_missing
from flowrl.scoring.runners import RewardRunner


@dataclass
class Unscored:
    """What a call of the scorer left without a score.

    lost: by reward, of the samples that it was asked about, which it could not score (True), and group: the group of
    each of them. failed: by reward, how many it lost to an error or a late answer; said: its last error, in words.
    number: of all samples; wrong: of those that no reward is asked about; fault: why not, of the first of them, and
    text: its prompt.
    """

    number: int = 0
    lost: dict[str, list[bool]] = field(default_factory=dict)
    group: dict[str, list[int]] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    wrong: int = 0
    fault: str = ""
    text: str = ""

    def faults(self) -> str:
        """How many samples no reward is asked about, and why, in words."""
        return f"{self.wrong} of {self.number} samples are not scored: {self.fault}"


def merged(parts: Sequence[Unscored]) -> Unscored:
    """One call of what several processes have scored, each the groups of its own prompts, which were dealt out to them
    in turn: samples stand in the order of the prompts."""
    whole = Unscored()
    for part in parts:
        if part.wrong and not whole.wrong:
            whole.fault, whole.text = part.fault, part.text
        whole.number, whole.wrong = whole.number + part.number, whole.wrong + part.wrong
        whole.said |= part.said
        for name, number in part.failed.items():
            whole.failed[name] = whole.failed.get(name, 0) + number
    for name in dict.fromkeys(name for part in parts for name in part.lost):
        dealt = [
            (group, process, lost)
            for process, part in enumerate(parts)
            for group, lost in zip(part.group.get(name, ()), part.lost.get(name, ()), strict=True)
        ]
        dealt.sort(key=lambda one: one[:2])  # stable: the samples of a group keep their order
        whole.lost[name], whole.group[name] = [one[2] for one in dealt], [one[0] for one in dealt]
    return whole


class Judge:
    """Counts what rewards could not score, and ends the run where a required one lost too many.

    failures: number of samples that each reward failed on since the start, by an error or by a late answer. Where
    several processes score together (`join`), all is counted and judged over all of them, in `settle`.
    """

    def __init__(self, rewards: Mapping[str, RewardRunner]):
        self._rewards = rewards
        self.failures = dict.fromkeys(rewards, 0)
        self.record = {name: FailureRecord(reward.spec.failure_limit) for name, reward in rewards.items()}
        self._gather: Callable[[list[Unscored]], list[list[Unscored]]] | None = None
        self._loud = True
        self._now, self._unsettled = Unscored(), list[Unscored]()

    def failed(self, name: str, number: int, error: Exception) -> None:
        """Notes that a reward failed on so many samples of the present call."""
        self._now.failed[name] = self._now.failed.get(name, 0) + number
        self.record[name].cause = error

    def called(
        self, samples: Samples, scores: Mapping[str, Tensor], asked: Mapping[str, Tensor], wrong: Mapping[int, str]
    ) -> None:
        """Ends a call of the scorer, with its scores [B].

        asked: of rewards that are not asked about all samples, about which, bool [B]; wrong: position -> why none is
        asked about this sample. Raises RewardError for a required reward that could not score too many.
        """
        call, self._now = self._now, Unscored()
        call.number, call.wrong = len(samples), len(wrong)
        if wrong:
            call.fault, call.text = next(iter(wrong.values())), samples.prompts[min(wrong)].text
        for name, score in scores.items():
            mask = asked.get(name, slice(None))
            call.lost[name], call.group[name] = score.isnan()[mask].tolist(), samples.group.cpu()[mask].tolist()
        call.said = {name: reason(record.cause) for name, record in self.record.items() if record.cause is not None}
        if self._gather is None:
            self._judge(call)
        else:
            self._unsettled.append(call)

    def join(self, gather: Callable[[list[Unscored]], list[list[Unscored]]], *, loud: bool) -> None:
        """From now on judges together with other processes. gather: gives what all of them have, in their order; loud:
        whether this one warns of failures."""
        self._gather, self._loud = gather, loud

    def settle(self, *, apart: bool = False) -> None:
        """Judges what all processes have scored since the last time; nothing where there is but one.

        Their first calls count as one, and so on, with samples in the order of the prompts that were dealt out to them
        in turn; apart: it is calls that were dealt out. Raises RewardError as a call does, on all alike.
        """
        if self._gather is None:
            return
        own, self._unsettled = self._unsettled, []
        parts = self._gather(own)
        for i in range(max(map(len, parts))):
            calls = [part[i] for part in parts if i < len(part)]
            for call in calls if apart else [merged(calls)]:
                self._judge(call)

    def _judge(self, call: Unscored) -> None:
        if call.wrong and self._loud:
            warnings.warn(f"{call.faults()}; the first is of the prompt {call.text!r}", stacklevel=4)
        for name, number in call.failed.items():
            self.failures[name] += number
        for name, lost in call.lost.items():
            record, reward = self.record[name], self._rewards[name]
            record.add(lost)
            if reward.spec.required and (many := record.too_many()):
                because = call.said.get(name) or (call.faults() if call.wrong else why_missing(reward.call))
                remedy = f"or set rewards.{name}.required=false to continue without these samples"
                problem = f"reward {name!r} could not score {many}: {because}; fix it, {remedy}"
                raise RewardError(problem) from record.cause
        for name, said in call.said.items():
            if not self.record[name].warned:
                self.record[name].warned = True
                kind = "reward" if self._rewards[name].spec.required else "optional reward"
                if self._loud:
                    warnings.warn(f"{kind} {name!r} failed, its samples are not scored: {said}", stacklevel=4)
