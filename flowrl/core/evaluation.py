"""Held-out evaluation: one ODE sample a prompt, each with its own noise, equal from one evaluation to the next.

And how far a policy with adapters has moved from the model without them.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowrl.contracts import ALONE, Conversation, LogProbs, Policy, Progress, Prompt, Ranks, Samples, View
from flowrl.core.advantages.repeated import repeated
from flowrl.core.backward import fill_reference
from flowrl.core.engine import PlanT
from flowrl.media.sounds import spectrogram_pictures


@dataclass(frozen=True)
class Mean:
    """A mean over samples, its standard error, and how many samples could be scored."""

    value: float
    error: float
    number: int

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"


@dataclass(frozen=True)
class Evaluation:
    """Scores by reward, float32 [B] each, and the first samples: pictures float [N, 3, H, W], or N texts.

    statistics: what was measured on all samples, whether kept or not. total: the rewards as they count together,
    where that is another number than that of a single reward times its weight. sounds: of the first samples, [N, C, T],
    with sample_rate a second; where there is nothing but sound, pictures are its spectrograms. talks: of those samples
    the conversations that they came of, where there were several turns.
    """

    prompts: Sequence[Prompt]
    scores: dict[str, Tensor]
    pictures: Tensor | None
    texts: Sequence[str] | None = None
    statistics: dict[str, float] = field(default_factory=dict)
    total: Tensor | None = None
    sounds: Tensor | None = None
    sample_rate: int | None = None
    talks: Sequence[Conversation] | None = None

    def means(self) -> dict[str, Mean]:
        """Each reward's mean over the samples it could score."""
        return {name: mean(values) for name, values in self.scores.items()}

    def means_with_total(self) -> dict[str, Mean]:
        """Each reward's mean and, where it is another, that of the total."""
        return self.means() if self.total is None else {**self.means(), "total": mean(self.total)}

    def metrics(self) -> dict[str, float]:
        """REWARD/mean and REWARD/error of each reward and of their total, and the statistics."""
        means = self.means_with_total()
        values = {f"{reward}/mean": m.value for reward, m in means.items()}
        return values | {f"{reward}/error": m.error for reward, m in means.items()} | self.statistics

    def record(self) -> dict[str, object]:
        """The prompts and every score as plain JSON values; one that could not be scored is null."""
        record: dict[str, object] = {
            "prompts": [{"id": p.id, "text": p.text, "kind": p.meta.get("kind")} for p in self.prompts],
            "scores": {name: _plain(values) for name, values in self.scores.items()},
        }
        return record if self.total is None else record | {"total": _plain(self.total)}

    def by(self, key: str) -> dict[str, dict[str, Mean]]:
        """reward -> value of that key of the prompts' meta -> mean; empty where no prompt has the key."""
        rows = defaultdict(list)
        for i, prompt in enumerate(self.prompts):
            if key in prompt.meta:
                rows[str(prompt.meta[key])].append(i)
        return {n: {k: mean(v[i]) for k, i in sorted(rows.items())} for n, v in self.scores.items()} if rows else {}


def _plain(values: Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values.tolist()]


def difference(after: Evaluation, before: Evaluation) -> Evaluation:
    """The scores of `after` minus those of `before`, sample by sample: its means have the standard errors of pairs.

    Both scored the same prompts, at equal noise. A sample that either could not score is NaN.
    """
    return Evaluation(
        after.prompts, {name: values - before.scores[name] for name, values in after.scores.items()}, None
    )


def mean(values: Tensor) -> Mean:
    """The mean of the values [N] that are not NaN, with its standard error."""
    known = values[~values.isnan()]
    if not len(known):
        return Mean(float("nan"), float("nan"), 0)
    error = float(known.std() / len(known) ** 0.5) if len(known) > 1 else 0.0
    return Mean(float(known.mean()), error, len(known))


@dataclass
class _Batch:
    """What was found of one batch of prompts: scores [B], what was measured, each with how many samples it is of, and
    those samples that are kept."""

    scores: dict[str, Tensor]
    measured: list[tuple[str, int, float]]
    pictures: Tensor | None = None
    texts: Sequence[str] = ()
    sounds: Tensor | None = None
    rate: int | None = None
    talks: Sequence[Conversation] = ()


@torch.no_grad()
def evaluate(
    policy: Policy[PlanT],
    prompts: Sequence[Prompt],
    score: Callable[[Samples], dict[str, Tensor]],
    *,
    plan: PlanT,
    seed: int,
    batch: int,
    each: int = 1,
    keep: int = 0,
    statistics: Callable[[Samples], dict[str, float]] = lambda samples: {},
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Samples and scores every prompt, `batch` of them at once, keeping the first `keep` samples. Scores are [B] each.

    each: samples of a prompt, whose mean is its score (avg@k), and of which the statistics say what they reach together
    (core/advantages/repeated.py). A video is kept as its middle frame. statistics measures a batch; batches are
    averaged by their size. ranks: share out the batches.
    """

    def found(start: int) -> _Batch:
        part = prompts[start : start + batch]
        samples = policy.rollout(part, group_size=each, plan=plan, seed=seed, progress=progress).samples
        scores = score(samples)
        of = _Batch(
            {name: values if each == 1 else values.view(len(part), each).nanmean(1) for name, values in scores.items()},
            [],
        )
        of.measured += [(name, len(samples), value) for name, value in statistics(samples).items()]
        if each > 1:
            for name, values in repeated(scores, each, samples.texts).items():
                known = values[~values.isnan()]
                of.measured += [(name, len(known), float(known.mean()))] if len(known) else []
            samples = samples[range(0, len(samples), each)]
        if start < keep:
            first = samples[range(min(len(samples), keep - start))]
            shown = picture_of(first)
            of.pictures = None if shown is None else shown.float().cpu()
            of.sounds = None if first.audio is None else first.audio.float().cpu()
            of.rate, of.texts = first.sample_rate, () if first.texts is None else first.readable()
            of.talks = first.talks or ()
        return of

    starts = range(0, len(prompts), batch)
    own = {start: found(start) for start in starts[ranks.rank :: ranks.size]}
    known = {start: of for part in ranks.gather(own) for start, of in part.items()}
    batches = [known[start] for start in starts]
    gathered = {name: torch.cat([of.scores[name] for of in batches]) for name in (batches[0].scores if batches else ())}
    measured: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for of in batches:
        for name, number, value in of.measured:
            measured[name].append((number, value))
    averages = {name: sum(n * v for n, v in parts) / sum(n for n, _ in parts) for name, parts in measured.items()}
    pictures, sounds = (
        [x for of in batches if (x := getattr(of, name)) is not None] for name in ("pictures", "sounds")
    )
    return Evaluation(
        prompts,
        gathered,
        torch.cat(pictures) if pictures else None,
        [text for of in batches for text in of.texts] or None,
        averages,
        sounds=torch.cat(sounds) if sounds else None,
        sample_rate=next((of.rate for of in batches if of.rate is not None), None),
        talks=[talk for of in batches for talk in of.talks] or None,
    )


def still(samples: Samples) -> Tensor | None:
    """One picture a sample, [B, 3, H, W]: the image, or a video's middle frame; None for text and sound."""
    if samples.video is not None:
        return samples.video[:, (samples.video.shape[1] - 1) // 2]
    return samples.images


def picture_of(samples: Samples) -> Tensor | None:
    """What to show of each sample, [B, 3, H, W]: as `still`, or the spectrogram of a sound; None for text."""
    if samples.images is None and samples.video is None and samples.audio is not None:
        return spectrogram_pictures(samples.audio)
    return still(samples)


@torch.no_grad()
def divergence(
    policy: Policy[PlanT],
    prompts: Sequence[Prompt],
    *,
    plan: PlanT,
    seed: int,
    batch: int,
    progress: Progress | None = None,
) -> float:
    """The exact divergence from the base model a decision: mean over the trained ones of one rollout a prompt.

    Of a denoising step it is that of its Gaussians, a latent element (or summed over them, where `sampler.reduce` says
    sum), of a token that over the vocabulary. Rollouts are drawn by the policy as it is, `batch` prompts at once.
    Raises PolicyError where it has no adapters.
    """
    total, number = 0.0, 0
    for part in _parts(prompts, batch):
        rollout = policy.rollout(part, group_size=1, plan=plan, seed=seed, progress=progress)
        rows = torch.arange(len(rollout.rollout_logp))
        view = View(exact_kl=True)
        fill_reference(policy, rollout, rows, view, progress)
        divergences: list[Tensor] = []

        def visit(seen: LogProbs, mask: Tensor = rollout.mask, divergences: list[Tensor] = divergences) -> None:
            if seen.kl is None:
                raise ValueError("the policy was asked for its exact divergence, and gave none")
            divergences.append(seen.kl.cpu()[mask[seen.rows[:, None], seen.columns[None]]])

        policy.look(rollout, rows, view, visit, progress=progress)
        values = torch.cat(divergences).double()
        total, number = total + float(values.sum()), number + len(values)
    return total / number


def _parts(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    size = max(1, size)
    return (prompts[i : i + size] for i in range(0, len(prompts), size))
