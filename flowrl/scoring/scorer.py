"""Runs the named rewards of a recipe on finished samples.

A reward is a function `(samples, **args)` or a class that is constructed with the arguments and then called with
samples; either returns float32 [B]. NaN means "could not be scored" and passes through: no error and no late answer
ever becomes a number. Samples without a score are counted, and too many of them end the run if the reward is required.
Rewards are not asked about invalid pictures (flowrl.media.pictures): these have no score.

Every call gets copies of its samples, and its scores are copied: whatever a reward writes, and whenever, it reaches
neither training nor other rewards.

A reward with a method `to` is moved to its device. One whose class says `groupwise = True` compares samples with others
of their group and is given whole groups. One that gives values of steps: see stepwise.py.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from flowrl.contracts import Samples, Steps
from flowrl.scoring import gates as composite
from flowrl.scoring.batches import Slices, copy_samples, cut_rows, sample_faults
from flowrl.scoring.cache import CachedScores
from flowrl.scoring.judging import Judge
from flowrl.scoring.lanes import Lane
from flowrl.scoring.results import RewardError, check_scores
from flowrl.scoring.runners import RewardRunner, load
from flowrl.scoring.stepwise import scores_of_steps, total
from flowrl.untyped import JSON

__all__ = ["RewardRunner", "RewardError", "Scorer", "load"]


Rows = tuple[int, ...]  # positions of samples
Outcome = Callable[[], CachedScores]  # returns the scores of a call, or raises its error
Started = dict[str, list[tuple[Rows, Outcome]]]  # by reward: positions of samples and what came of them


class Scorer:
    """Scores samples with every reward, `batch` samples at a time unless a reward has its own number (None: all).

    device: of rewards with weights that name none. judge: counts what could not be scored.
    """

    def __init__(
        self, rewards: Mapping[str, RewardRunner], *, batch: int | None = None, device: str | torch.device | None = None
    ):
        if batch is not None and batch < 1:
            raise ValueError(f"batch={batch}: give 1 or more, or None for all at once")
        self.rewards, self.batch, self.device = dict(rewards), batch, device
        self.specs = {name: reward.spec for name, reward in self.rewards.items()}
        self.weights = {name: spec.weight for name, spec in self.specs.items()}
        self.trained = [name for name, weight in self.weights.items() if weight]
        self.judge = Judge(self.rewards)
        self.failures, self.record = self.judge.failures, self.judge.record
        lanes = [name for name, spec in self.specs.items() if spec.overlap or spec.time_limit is not None]
        self._lanes = {name: Lane(name, self.specs[name].time_limit) for name in lanes}
        self._ahead: list[tuple[Samples, Started]] = []

    def __call__(self, samples: Samples, progress: Callable[[str], None] | None = None) -> dict[str, Tensor]:
        """Reward name -> float32 [B] on the CPU; NaN also where a reward is not asked about a sample.

        A reward that compares samples of a group is left out if each sample is alone, as in an evaluation. progress is
        called with the name of each reward that is done. Raises RewardError if a required reward left too many samples
        without a score, if it returns anything but scores, and if no sample is a valid picture.
        """
        ahead, self._ahead = self._ahead, []
        wanted, wrong = self._applicable(samples), _faults(samples)
        scores = {name: torch.full((len(samples),), torch.nan) for name in wanted}
        steps: dict[str, list[Steps]] = {name: [()] * len(samples) for name in wanted if self.rewards[name].process}
        begun = self._started(samples, ahead)
        now = [name for name in wanted if name not in begun]
        with self._on_devices(now):
            # One slice of samples goes to every reward before the next: rewards that share work (a checker's strict and
            # graded score) meet the same pictures one after the other.
            for together, index, last in self._slices(samples, now, wrong):
                for name in together:
                    self._fill(scores, steps, name, self._begin(name, samples, index), index)
                    if last and progress is not None:
                        progress(name)
        for name, parts in begun.items():
            for index, outcome in parts:
                self._fill(scores, steps, name, outcome, index)
            if progress is not None:
                progress(name)
        self.judge.called(samples, scores, self.asked_masks(samples), wrong)
        samples.steps.update(steps)
        return scores

    def with_gradient(self, samples: Samples, texts: Sequence[str] | None = None) -> Tensor:
        """The weighted sum of the trained rewards, float32 [B], with gradient to pictures or video.

        texts: in the place of the prompts'. A reward counts 0 for a sample that it is not asked about. The gradient at
        the pixels is taken here, while the rewards are on their devices, and nothing else of their graphs is kept.
        """
        pixels = samples.images if samples.images is not None else samples.video
        if pixels is None:
            raise RewardError("no reward has a gradient to what the model gives: train with rewards of pictures")
        texts = [prompt.text for prompt in samples.prompts] if texts is None else texts
        asked, total = self.asked_masks(samples), torch.zeros(len(samples), device=pixels.device)
        slope = torch.zeros_like(pixels)
        for name in self.trained:
            with self._on_devices([name]), torch.enable_grad():
                leaf = pixels.detach().to(self._device(name) or pixels.device).requires_grad_()
                value = self.rewards[name].call.score(leaf, texts).float()  # pyright: ignore[reportAttributeAccessIssue]
                if name in asked:
                    value = value.where(asked[name].to(value.device), 0.0)
                found = torch.autograd.grad(value.sum(), leaf)[0]
            total = total + self.weights[name] * value.detach().to(total)
            slope = slope + self.weights[name] * found.to(slope)
        return total + ((pixels - pixels.detach()) * slope).flatten(1).sum(1).float()

    # ------------------------------------------------------------------ scoring while drawing

    @property
    def overlaps(self) -> bool:
        """Whether any reward overlaps with drawing, so that `take` is useful."""
        return any(spec.overlap for spec in self.specs.values())

    def take(self, samples: Samples) -> None:
        """Starts to score these samples, whole groups, with the rewards that overlap with drawing the next ones.

        The next call collects the scores if its samples are all those taken, in their order.
        """
        wanted = [name for name in self._applicable(samples) if self.specs[name].overlap]
        parts: Started = {name: [] for name in wanted}
        with self._on_devices(wanted):
            for together, index, _ in self._slices(samples, wanted, _faults(samples)):
                for name in together:
                    parts[name].append((index, self._begin(name, samples, index)))
        self._ahead.append((samples, parts))

    def _started(self, samples: Samples, ahead: Sequence[tuple[Samples, Started]]) -> Started:
        """The calls started by `take` for exactly these samples, by reward, with positions among all of them."""
        prompts = [prompt for part, _ in ahead for prompt in part.prompts]
        if not ahead or prompts != list(samples.prompts):
            return {}
        started: Started = defaultdict(list)
        offset = 0
        for part, by_name in ahead:
            for name, outcomes in by_name.items():
                started[name] += [(tuple(i + offset for i in index), outcome) for index, outcome in outcomes]
            offset += len(part)
        return started

    # ------------------------------------------------------------------ calls

    def asked_masks(self, samples: Samples) -> dict[str, Tensor]:
        """Of rewards that are not asked about every prompt: about which samples, bool [B]; see gates.asked_masks."""
        return composite.asked_masks(self.specs, samples.prompts)

    def _applicable(self, samples: Samples) -> list[str]:
        """All rewards, without those that compare samples if there is nothing to compare with."""
        alone = len(samples.group.unique()) == len(samples) > 0
        return [name for name, reward in self.rewards.items() if not (alone and reward.groupwise)]

    def _slices(
        self, samples: Samples, wanted: Sequence[str], wrong: Mapping[int, str]
    ) -> Iterator[tuple[list[str], Rows, bool]]:
        """Rewards, the positions that they are called with next, and whether these are the last."""
        asked = self.asked_masks(samples)
        cuts: dict[Slices, list[str]] = defaultdict(list)
        for name in wanted:
            rows = asked[name].nonzero()[:, 0].tolist() if name in asked else range(len(samples))
            rows = [i for i in rows if i not in wrong]
            reward = self.rewards[name]
            cuts[cut_rows(rows, samples.group, reward.spec.batch or self.batch, reward.groupwise)].append(name)
        for parts, together in cuts.items():
            for i, index in enumerate(parts):
                yield together, index, i == len(parts) - 1

    def _begin(self, name: str, samples: Samples, index: Rows) -> Outcome:
        """Makes the call lazily, or submits it to the reward's own thread."""
        call, lane = partial(self._call, name, samples, index), self._lanes.get(name)
        return call if lane is None else partial(lane.result, lane.submit(call))

    @torch.no_grad()
    def _call(self, name: str, samples: Samples, index: Rows) -> CachedScores:
        reward = self.rewards[name]
        part = copy_samples(samples, index, self._device(name))

        def ask(some: Samples) -> CachedScores:
            number, texts = len(some), list(some.texts or ())  # before the reward has them
            try:
                given = reward.call(some)
            except SystemExit as error:
                raise RewardError(f"reward {name!r} asked the process to end (code {error.code}); fix it") from error
            if reward.process:
                return scores_of_steps(name, given, number, texts, reward.spec.steps)
            return CachedScores(check_scores(name, given, number))

        if reward.cache is None:
            return ask(part)
        if reward.process:
            return reward.cache.of_steps(ask, part, lambda steps: total(steps, reward.spec.steps))
        return reward.cache(lambda some: ask(some).scores, part)

    def _fill(
        self, scores: dict[str, Tensor], steps: dict[str, list[Steps]], name: str, outcome: Outcome, index: Rows
    ) -> None:
        """Puts what came of a call into its places: NaN, and no steps, where it failed."""
        scored = self._score(name, outcome, len(index))
        scores[name][list(index)] = scored.scores
        for i, of in zip(index, scored.steps or (), strict=False):
            steps[name][i] = of

    def _score(self, name: str, outcome: Outcome, number: int) -> CachedScores:
        """The scores of a call, float32 [number], NaN if it failed."""
        try:
            scored = outcome()
        except Exception as error:
            if self.specs[name].required and isinstance(error, RewardError):
                raise
            self.judge.failed(name, number, error)
            return CachedScores(torch.full((number,), torch.nan))
        if (cache := self.rewards[name].cache) is not None:
            cache.keep(scored)
        return scored

    # ------------------------------------------------------------------ devices

    def _device(self, name: str) -> str | torch.device | None:
        """The device of a reward; None for one that has no weights to move."""
        reward = self.rewards[name]
        if not hasattr(reward.call, "to"):
            return None
        return reward.spec.device or self.device

    @contextmanager
    def _on_devices(self, together: Sequence[str]) -> Iterator[None]:
        """The rewards on their devices; those that offload are on the CPU again afterwards."""
        placed = [(name, device) for name in together if (device := self._device(name)) is not None]
        for name, device in placed:
            self.rewards[name].call.to(device)  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            for name, _ in placed:
                if self.specs[name].offload:
                    self.rewards[name].call.to("cpu")  # pyright: ignore[reportAttributeAccessIssue]

    # ------------------------------------------------------------------ what a resume needs

    def state_dict(self) -> dict[str, JSON]:
        """Failures so far, and which of the latest samples were not scored."""
        return {"failures": dict(self.failures), "latest": {n: list(r.latest) for n, r in self.record.items()}}

    def load_state_dict(self, saved: Mapping[str, JSON]) -> None:
        """Restores what `state_dict` returned."""
        self.failures.update(saved["failures"])
        for name, latest in saved["latest"].items():
            self.record[name].latest = list(latest)


def _faults(samples: Samples) -> dict[int, str]:
    """Position -> why a sample has no score, whatever the reward. Raises RewardError where none can have one."""
    try:
        return sample_faults(samples)
    except ValueError as error:
        raise RewardError(f"no reward can score what the model gives: {error}") from None
