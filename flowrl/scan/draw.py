"""Draws the groups of every value, and the ODE's samples from the same initial noise, in batches of prompts.

All values use the same prompts and seeds (common random numbers) and take turns within a batch, so that differences in
quality are paired, and differences in time are not due to changing load of the machine.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowrl.contracts import Policy, Prompt, Samples
from flowrl.core.engine import PlanT
from flowrl.core.evaluation import mean, picture_of
from flowrl.kinds import kind_of
from flowrl.planning.costs import plan_for
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.keys.rewards import RewardSpec
from flowrl.recipe.schema import Recipe
from flowrl.scan.measures import ValueMeasures, group_spreads, paired_difference, prompt_means, standard_deviation
from flowrl.scan.values import ScannedValue
from flowrl.scoring.gates import counted_rewards
from flowrl.watch.sample_statistics import sample_statistics

ScoreFunction = Callable[[Samples], dict[str, Tensor]]


@dataclass
class PromptSamples:
    """The samples of a prompt that are shown, the ODE's first: pictures [1 + n, 3, H, W] or texts, and rewards."""

    prompt: str
    rewards: list[float]
    pictures: Tensor | None = None
    texts: list[str] | None = None


@dataclass
class ValueSamples:
    """Everything drawn for one value: by name the rewards [p, L] of each batch, of samples and of their ODE samples."""

    rewards: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    ode: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    once: list[Tensor] = field(default_factory=list)  # the ODE's weighted sums, each of its samples once
    distances: list[Tensor] = field(default_factory=list)
    statistics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    ode_statistics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    shots: list[PromptSamples] = field(default_factory=list)
    samples: int = 0
    seconds: list[float] = field(default_factory=list)  # per sample, of each batch
    forwards: int = 0
    ode_samples: int = 0
    ode_forwards: int = 0


@dataclass
class ScoredSamples:
    """Samples of a few prompts, with their rewards and what they cost."""

    samples: Samples
    rewards: dict[str, Tensor]
    seconds: float
    forwards: int


@dataclass(frozen=True)
class ScanSettings:
    """How a scan draws."""

    iteration: int  # of training, whose steps are sampled
    group: int
    seed: int
    together: int  # prompts per batch
    show: int  # prompts whose samples are kept
    members: int  # samples of each that are kept


def scan_settings(recipe: Recipe, iteration: int, *, show: int, members: int) -> ScanSettings:
    """Settings that draw as the recipe does in this iteration, except that noise is numbered from 0."""
    return ScanSettings(iteration, recipe.train.group, recipe.seed, recipe.train.prompts, show, members)


def refuse_equal(key: str, choices: Sequence[ScannedValue], iteration: int) -> None:
    """Raises RecipeError where two values draw the same samples in this iteration: there is nothing to compare."""
    seen: list[tuple[str, object]] = []
    for choice in choices:
        drawing = _drawing_key(choice.recipe, iteration)
        for label, other in seen:
            if drawing == other:
                problem = f"{label} and {choice.label} draw the same samples in iteration {iteration}"
                raise RecipeError(key, problem, "scan another key, or name another --iteration")
        seen.append((choice.label, drawing))


def _drawing_key(recipe: Recipe, iteration: int) -> object:
    """Everything that determines the samples, except seeds and weights."""
    kind = kind_of(recipe)
    return plan_for(recipe, iteration), kind.noise(recipe), kind.call(recipe)


@torch.no_grad()
def draw_values(
    policy: Policy,
    choices: Sequence[ScannedValue],
    prompts: Sequence[Prompt],
    score: ScoreFunction,
    settings: ScanSettings,
    *,
    rewards: Mapping[str, RewardSpec],
    progress: Callable[[str, int], None] = lambda label, samples: None,
) -> list[ValueSamples]:
    """The samples of every value, in order.

    rewards: by name, how each counts. progress is called with a value's label and the number of its samples so far.
    """
    collected, kind = [ValueSamples() for _ in choices], kind_of(choices[0].recipe)
    for choice in choices:
        kind.building.retune(policy, choice.recipe)  # refuse what can be refused before anything is drawn
    for start in range(0, len(prompts), settings.together):
        part = prompts[start : start + settings.together]
        references: list[tuple[object, ScoredSamples]] = []
        for choice, into in zip(choices, collected, strict=True):
            kind.building.retune(policy, choice.recipe)
            plan = plan_for(choice.recipe, settings.iteration)
            policy.prepare(part[0], plan)
            starts = kind.planning.starts(plan, settings.group)
            reference = _draw_reference(policy, choice.recipe, part, score, settings, max(starts) + 1, references)
            drawn = _draw_scored(policy, part, plan, settings.group, score, settings)
            _collect(into, drawn, reference, starts, rewards, settings)
            progress(choice.label, into.samples)
    return collected


def _draw_reference(
    policy: Policy,
    recipe: Recipe,
    part: Sequence[Prompt],
    score: ScoreFunction,
    settings: ScanSettings,
    number: int,
    known: list[tuple[object, ScoredSamples]],
) -> ScoredSamples:
    """`number` ODE samples (or one greedy completion) per prompt; reuses an earlier value's if they are equal."""
    kind = kind_of(recipe)
    plan = kind.planning.reference_plan(recipe)
    drawing = plan, number, kind.call(recipe)
    for other, known_samples in known:
        if other == drawing:
            return known_samples
    known.append((drawing, _draw_scored(policy, part, plan, number, score, settings)))
    return known[-1][1]


def _draw_scored(
    policy: Policy[PlanT], part: Sequence[Prompt], plan: PlanT, group: int, score: ScoreFunction, settings: ScanSettings
) -> ScoredSamples:
    forwards = 0

    def count(number: int) -> None:
        nonlocal forwards
        forwards += number

    start = time.perf_counter()
    samples = policy.rollout(part, group_size=group, plan=plan, seed=settings.seed, progress=count).samples
    seconds = time.perf_counter() - start
    return ScoredSamples(samples, score(samples), seconds, forwards)


def _total_reward(part: ScoredSamples, rewards: Mapping[str, RewardSpec]) -> torch.Tensor:
    """The total reward of each sample, float [B]; NaN if all trained rewards compare samples, and each is alone."""
    samples = part.samples
    total = counted_rewards(rewards, part.rewards, samples.prompts, samples.group, samples).total
    return torch.full((len(part.samples),), torch.nan) if total is None else total


def _collect(
    into: ValueSamples,
    drawn: ScoredSamples,
    reference: ScoredSamples,
    starts: Sequence[int],
    rewards: Mapping[str, RewardSpec],
    settings: ScanSettings,
) -> None:
    number = int(drawn.samples.group.max()) + 1
    every = max(starts) + 1
    pairs = torch.tensor([prompt * every + start for prompt in range(number) for start in starts])
    total, reference_total = (_total_reward(part, rewards) for part in (drawn, reference))
    for name, values in {**drawn.rewards, "total": total}.items():
        into.rewards[name].append(values.view(number, -1))
    for name, values in {**reference.rewards, "total": reference_total}.items():
        into.ode[name].append(values[pairs].view(number, -1))
    into.once.append(reference_total)
    into.distances.append(_distance_to_reference(drawn.samples, reference.samples, pairs).view(number, -1))
    into.statistics.append((len(drawn.samples), sample_statistics(drawn.samples)))
    into.ode_statistics.append((len(reference.samples), sample_statistics(reference.samples)))
    into.samples += len(drawn.samples)
    into.seconds.append(drawn.seconds / len(drawn.samples))
    into.forwards += drawn.forwards
    into.ode_samples += len(reference.samples)
    into.ode_forwards += reference.forwards
    for prompt in range(min(number, settings.show - len(into.shots))):
        into.shots.append(
            _prompt_samples(drawn, reference, total, reference_total, prompt, number, every, settings.members)
        )


def _distance_to_reference(samples: Samples, ode: Samples, pairs: Tensor) -> Tensor:
    """Root-mean-square pixel distance to the ODE's sample, float32 [B]; pairs int64 [B]: the index of that sample.

    Of videos, the distance of middle frames; of sound, that of spectrograms; of texts, 1 where the completion differs
    from the greedy one.
    """
    pictures, others = picture_of(samples), picture_of(ode)
    if pictures is None or others is None:
        texts, greedy = samples.texts or (), ode.texts or ()
        return torch.tensor([float(text != greedy[i]) for text, i in zip(texts, pairs.tolist(), strict=True)])
    gap = pictures.float() - others.float()[pairs.to(others.device)]
    return gap.square().mean((1, 2, 3)).sqrt().cpu()


def _prompt_samples(
    drawn: ScoredSamples,
    reference: ScoredSamples,
    total: Tensor,
    reference_total: Tensor,
    prompt: int,
    number: int,
    every: int,
    members: int,
) -> PromptSamples:
    size = len(drawn.samples) // number
    at, first = range(prompt * size, prompt * size + min(members, size)), prompt * every
    shown = PromptSamples(drawn.samples.prompts[at[0]].text, [float(reference_total[first]), *total[list(at)].tolist()])
    pictures, others = picture_of(drawn.samples), picture_of(reference.samples)
    if pictures is not None and others is not None:
        shown.pictures = torch.cat([others[first : first + 1], pictures[at[0] : at[-1] + 1]]).float().cpu()
    elif drawn.samples.texts is not None and reference.samples.texts is not None:
        shown.texts = [reference.samples.texts[first], *(drawn.samples.texts[i] for i in at)]
    return shown


def measure(label: str, drawn: ValueSamples) -> ValueMeasures:
    """The measures of the samples of one value."""
    rewards = {name: torch.cat(parts) for name, parts in drawn.rewards.items()}
    ode = {name: torch.cat(parts) for name, parts in drawn.ode.items()}
    spread, silent = group_spreads(rewards["total"])
    gaps = {name: paired_difference(values, ode[name]) for name, values in rewards.items()}
    return ValueMeasures(
        label=label,
        spreads=spread,
        qualities=gaps["total"],
        silent=float(silent.double().mean()),
        reward=mean(prompt_means(rewards["total"])),
        ode=mean(prompt_means(ode["total"])),
        deviation=standard_deviation(torch.cat(drawn.once)),
        by_reward={n: (mean(prompt_means(v)), mean(gaps[n])) for n, v in rewards.items() if n != "total"},
        distance=mean(torch.cat(drawn.distances).double().mean(1)),
        statistics=_pool(drawn.statistics),
        ode_statistics=_pool(drawn.ode_statistics),
        seconds=statistics.median(drawn.seconds),
        forwards=drawn.forwards / drawn.samples,
        ode_forwards=drawn.ode_forwards / drawn.ode_samples,
    )


def _pool(parts: Sequence[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """Statistics of all samples: the mean of those of batches, weighted by their sizes."""
    whole = sum(number for number, _ in parts)
    return {name: sum(n * statistics[name] for n, statistics in parts) / whole for name in parts[0][1]}
