"""A worker process: loads the rewards once, then scores requests one by one, from standard input to standard output."""

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

import torch

from flowrl.contracts import Samples
from flowrl.recipe.keys.rewards import RewardSpec
from flowrl.scoring.batches import sample_faults
from flowrl.scoring.cache import identity
from flowrl.scoring.code import digest
from flowrl.scoring.scorer import RewardError, Scorer, load
from flowrl.serve import frames
from flowrl.untyped import JSON
from reward_models.parts.remote.protocol import VERSION
from reward_models.parts.remote.wire import MalformedRequestError, RequestLimits, decode

STATUSES = ("ok", "unscored", "error")  # from best to worst


@dataclass(frozen=True)
class SampleResult:
    """The result of one reward for one sample."""

    status: str
    score: float | None = None
    reason: str = ""


class LoadedRewards:
    """The rewards of a server. The client's recipe decides which failures matter; here, none stops the server."""

    def __init__(self, specs: Mapping[str, RewardSpec], device: str):
        """Loads the rewards. Raises RewardError if one cannot be set up."""
        place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.scorers = {}
        for name, loaded in load(specs).items():
            alone = {"weight": 1.0, "required": False, "when": None, "gate": None, "overlap": False}
            runner = replace(loaded, spec=loaded.spec.model_copy(update=alone))
            self.scorers[name] = Scorer({name: runner}, device=place)

    def describe(self, specs: Mapping[str, RewardSpec]) -> dict[str, dict[str, JSON]]:
        """What clients learn of each reward: use, whether it needs whole groups, and a hash of its code and files."""
        described = {}
        for name, scorer in self.scorers.items():
            reward, spec = scorer.rewards[name], specs[name]
            code = identity(spec.use, spec.args, digest(reward.call))
            described[name] = {"use": spec.use, "groupwise": reward.groupwise, "identity": code}
        return described

    def score_items(self, samples: Samples, wanted: Sequence[str] | None) -> list[dict[str, JSON]]:
        """The items of an answer. Raises MalformedRequestError for an unknown reward."""
        names = list(dict.fromkeys(wanted)) if wanted else list(self.scorers)
        for name in names:
            if name not in self.scorers:
                raise MalformedRequestError(404, f"no reward {name[:80]!r}; accepted: {', '.join(self.scorers)}")
        wrong = sample_faults(samples)
        good = [i for i in range(len(samples)) if i not in wrong]
        results = {}
        for name in names:
            scored = dict(zip(good, self._score_samples(name, samples[good]) if good else (), strict=True))
            results[name] = {i: SampleResult("unscored", reason=text) for i, text in wrong.items()} | scored
        return [_item({name: results[name][i] for name in names}) for i in range(len(samples))]

    def _score_samples(self, name: str, samples: Samples) -> list[SampleResult]:
        """The reward's result for each sample. A sample that makes a call fail does not affect the others."""
        scorer = self.scorers[name]
        record = scorer.record[name]
        record.cause = None
        scores_by_name = scorer(samples)
        if name not in scores_by_name:
            return [SampleResult("unscored", reason="the reward compares samples of a group, and each is alone")] * len(
                samples
            )
        scores = scores_by_name[name].tolist()
        cause = record.cause
        if cause is not None and len(samples) > 1 and not scorer.rewards[name].groupwise:
            return [self._score_samples(name, samples[[i]])[0] for i in range(len(samples))]
        return [_result(score, cause) for score in scores]


def _result(score: float, cause: Exception | None) -> SampleResult:
    if score == score:
        return SampleResult("ok", score)
    if cause is None:
        return SampleResult("unscored", reason="the reward gave no number")
    return SampleResult("error", reason=" ".join(f"{type(cause).__name__}: {cause}".split())[:300])


def _item(results: Mapping[str, SampleResult]) -> dict[str, JSON]:
    worst = max(results.values(), key=lambda verdict: STATUSES.index(verdict.status))
    item: dict[str, JSON] = {"status": worst.status, "scores": {name: v.score for name, v in results.items()}}
    return item | ({"reason": worst.reason} if worst.reason else {})


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Serves until the pipe is closed. The first frame says what to load."""
    setup_frame = frames.read(source)
    if setup_frame is None:
        return
    setup = json.loads(setup_frame)
    specs = {name: RewardSpec.model_validate(spec) for name, spec in setup["rewards"].items()}
    limits = RequestLimits(setup["max_items"], setup["max_pixels"])
    try:
        rewards = LoadedRewards(specs, setup["device"])
    except (RewardError, ValueError) as error:
        frames.write(sink, _dumps({"error": " ".join(str(error).split())}))
        return
    frames.write(sink, _dumps({"rewards": rewards.describe(specs)}))
    while (kind := frames.read(source)) is not None and (body := frames.read(source)) is not None:
        frames.write(sink, _dumps(_answer(rewards, kind.decode(), body, limits)))
        del body


def _answer(rewards: LoadedRewards, kind: str, body: bytes, limits: RequestLimits) -> dict[str, JSON]:
    try:
        samples, wanted = decode(kind, body, limits)
        return {"status": 200, "answer": {"version": VERSION, "items": rewards.score_items(samples, wanted)}}
    except MalformedRequestError as error:
        return {"status": error.status, "answer": {"version": VERSION, "error": str(error)}}


def _dumps(value: dict[str, JSON]) -> bytes:
    return json.dumps(value, allow_nan=False).encode()


def main() -> None:
    """Entry point. Signals are left to the server, which closes the pipe; what rewards print goes to standard error."""
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
