"""A worker process: loads the rewards once, then scores one request after the other, from its input to its output."""

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import torch

from flowrl.contracts import Samples
from flowrl.recipe.rewards import RewardSpec
from flowrl.scoring.batches import faults
from flowrl.scoring.cache import identity
from flowrl.scoring.code import digest
from flowrl.scoring.scorer import RewardError, Scorer, load
from flowrl.serve import frames
from reward_models.parts.remote.protocol import VERSION
from reward_models.parts.remote.wire import Limits, Malformed, decode

WORSE = ("ok", "unscored", "error")


@dataclass(frozen=True)
class Verdict:
    """What one reward made of one sample."""

    status: str
    score: float | None = None
    reason: str = ""


class Rewards:
    """The rewards of a server. Which failures matter is for the client's recipe to say: here none stops anything."""

    def __init__(self, specs: Mapping[str, RewardSpec], device: str):
        """Loads them. Raises RewardError where one cannot be set up."""
        place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.scorers = {}
        for name, loaded in load(specs).items():
            alone = {"weight": 1.0, "required": False, "when": None, "gate": None, "overlap": False}
            runner = replace(loaded, spec=loaded.spec.model_copy(update=alone))
            self.scorers[name] = Scorer({name: runner}, device=place)

    def describe(self, specs: Mapping[str, RewardSpec]) -> dict[str, dict[str, Any]]:
        """What clients are told of each: use, whether it needs whole groups, and what tells its code and files."""
        told = {}
        for name, scorer in self.scorers.items():
            reward, spec = scorer.rewards[name], specs[name]
            code = identity(spec.use, spec.args, digest(reward.call))
            told[name] = {"use": spec.use, "groupwise": reward.groupwise, "identity": code}
        return told

    def outcomes(self, samples: Samples, wanted: Sequence[str] | None) -> list[dict[str, Any]]:
        """The items of an answer. Raises Malformed for a reward that is not there."""
        names = list(dict.fromkeys(wanted)) if wanted else list(self.scorers)
        for name in names:
            if name not in self.scorers:
                raise Malformed(404, f"no reward {name[:80]!r}; accepted: {', '.join(self.scorers)}")
        wrong = faults(samples)
        good = [i for i in range(len(samples)) if i not in wrong]
        verdicts = {}
        for name in names:
            found = dict(zip(good, self._verdicts(name, samples[good]) if good else (), strict=True))
            verdicts[name] = {i: Verdict("unscored", reason=text) for i, text in wrong.items()} | found
        return [_item({name: verdicts[name][i] for name in names}) for i in range(len(samples))]

    def _verdicts(self, name: str, samples: Samples) -> list[Verdict]:
        """What the reward makes of each sample. One that makes a call fail does not take the others with it."""
        scorer = self.scorers[name]
        record = scorer.record[name]
        record.cause = None
        found = scorer(samples)
        if name not in found:
            return [Verdict("unscored", reason="the reward compares samples of a group, and each is alone")] * len(
                samples
            )
        scores = found[name].tolist()
        cause = record.cause
        if cause is not None and len(samples) > 1 and not scorer.rewards[name].groupwise:
            return [self._verdicts(name, samples[[i]])[0] for i in range(len(samples))]
        return [_verdict(score, cause) for score in scores]


def _verdict(score: float, cause: Exception | None) -> Verdict:
    if score == score:
        return Verdict("ok", score)
    if cause is None:
        return Verdict("unscored", reason="the reward gave no number")
    return Verdict("error", reason=" ".join(f"{type(cause).__name__}: {cause}".split())[:300])


def _item(verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    worst = max(verdicts.values(), key=lambda verdict: WORSE.index(verdict.status))
    item: dict[str, Any] = {"status": worst.status, "scores": {name: v.score for name, v in verdicts.items()}}
    return item | ({"reason": worst.reason} if worst.reason else {})


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Works until the server closes the pipe. The first frame says what to load."""
    told = frames.read(source)
    if told is None:
        return
    setup = json.loads(told)
    specs = {name: RewardSpec.model_validate(spec) for name, spec in setup["rewards"].items()}
    limits = Limits(setup["max_items"], setup["max_pixels"])
    try:
        rewards = Rewards(specs, setup["device"])
    except (RewardError, ValueError) as error:
        frames.write(sink, _dumps({"error": " ".join(str(error).split())}))
        return
    frames.write(sink, _dumps({"rewards": rewards.describe(specs)}))
    while (kind := frames.read(source)) is not None and (body := frames.read(source)) is not None:
        frames.write(sink, _dumps(_answer(rewards, kind.decode(), body, limits)))
        del body


def _answer(rewards: Rewards, kind: str, body: bytes, limits: Limits) -> dict[str, Any]:
    try:
        samples, wanted = decode(kind, body, limits)
        return {"status": 200, "answer": {"version": VERSION, "items": rewards.outcomes(samples, wanted)}}
    except Malformed as error:
        return {"status": error.status, "answer": {"version": VERSION, "error": str(error)}}


def _dumps(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode()


def main() -> None:
    """Entry point. Signals are for the server, which closes the pipe; what rewards print goes to standard error."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    with source, sink:
        serve(source, sink)


if __name__ == "__main__":
    main()
