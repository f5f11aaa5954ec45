"""Draws the groups of every value, and the ODE's samples from the same initial noise, part by part of the prompts.

All values meet the same prompts and seeds (common random numbers) and take turns within a part, so that differences in
quality are paired and differences in time are not those of the machine's moods.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flowrl.build import AnyPolicy, build_dynamics
from flowrl.contracts import Prompt, Samples
from flowrl.core.evaluation import mean, picture_of
from flowrl.planning.costs import eval_plan, plan_for
from flowrl.policies.language.chat import Encoder
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.rewards import RewardSpec
from flowrl.recipe.schema import Recipe
from flowrl.scan.measures import Row, by_prompt, deviation, paired, spreads
from flowrl.scan.values import Choice
from flowrl.scoring.gates import counted_rewards
from flowrl.watch.sample_statistics import sample_statistics

Score = Callable[[Samples], dict[str, Tensor]]


@dataclass
class Shot:
    """What is shown of a prompt's group: the ODE's sample first. pictures [1 + n, 3, H, W] or texts, and rewards."""

    prompt: str
    rewards: list[float]
    pictures: Tensor | None = None
    texts: list[str] | None = None


@dataclass
class Drawn:
    """All that was drawn for one value: rewards [p, L] of every part by name, of samples and of their ODE samples."""

    rewards: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    ode: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    once: list[Tensor] = field(default_factory=list)  # the ODE's weighted sums, each of its samples once
    distances: list[Tensor] = field(default_factory=list)
    statistics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    ode_statistics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    shots: list[Shot] = field(default_factory=list)
    samples: int = 0
    seconds: list[float] = field(default_factory=list)  # a sample, of each part
    forwards: int = 0
    ode_samples: int = 0
    ode_forwards: int = 0


@dataclass
class Part:
    """Samples of a few prompts, with their rewards and what they cost."""

    samples: Samples
    rewards: dict[str, Tensor]
    seconds: float
    forwards: int


@dataclass(frozen=True)
class Setting:
    """How a scan draws."""

    iteration: int  # of training, whose steps are walked
    group: int
    seed: int
    together: int  # prompts of a part
    show: int  # prompts of which samples are kept
    members: int  # samples of each that are kept


def setting(recipe: Recipe, iteration: int, *, show: int, members: int) -> Setting:
    """As the recipe draws in this iteration, as many prompts at once; only the numbers of the noise begin at 0."""
    return Setting(iteration, recipe.train.group, recipe.seed, recipe.train.prompts, show, members)


def refuse_equal(key: str, choices: Sequence[Choice], iteration: int) -> None:
    """Raises RecipeError where two values draw the same samples in this iteration: there is nothing to compare."""
    seen: list[tuple[str, Any]] = []
    for choice in choices:
        way = _way(choice.recipe, iteration)
        for label, other in seen:
            if way == other:
                problem = f"{label} and {choice.label} draw the same samples in iteration {iteration}"
                raise RecipeError(key, problem, "scan another key, or name another --iteration")
        seen.append((choice.label, way))


def _way(recipe: Recipe, iteration: int) -> Any:
    """All that decides what is drawn, but for seeds and weights."""
    token = recipe.generation
    if token is not None:
        return plan_for(recipe, iteration), token.chat_template, token.system
    return plan_for(recipe, iteration), recipe.sampler.step, recipe.sampler.noise, recipe.pipeline


def retune(policy: AnyPolicy, recipe: Recipe) -> None:
    """Makes a policy draw as another recipe of the same model says. Raises RecipeError where its step does not fit."""
    if isinstance(policy, LanguagePolicy):
        given = recipe.generation
        assert given is not None
        policy.encode = Encoder(policy.tokenizer, template=given.chat_template, system=given.system)
    else:
        policy.dynamics, policy.call = build_dynamics(recipe, policy.source), recipe.pipeline


@torch.no_grad()
def draw(
    policy: AnyPolicy,
    choices: Sequence[Choice],
    prompts: Sequence[Prompt],
    score: Score,
    how: Setting,
    *,
    rewards: Mapping[str, RewardSpec],
    done: Callable[[str, int], None] = lambda label, samples: None,
) -> list[Drawn]:
    """What was drawn for every value, in order. rewards: how each counts. done is told a value and how many of its
    samples there are now."""
    found = [Drawn() for _ in choices]
    for choice in choices:
        retune(policy, choice.recipe)  # all that can be refused is, before anything is drawn
    for start in range(0, len(prompts), how.together):
        part = prompts[start : start + how.together]
        odes: list[tuple[Any, Part]] = []
        for choice, into in zip(choices, found, strict=True):
            retune(policy, choice.recipe)
            plan = plan_for(choice.recipe, how.iteration)
            policy.prepare(part[0], plan)
            starts = _starts(plan, how.group)
            ode = _ode(policy, choice.recipe, part, score, how, max(starts) + 1, odes)
            drawn = _rollout(policy, part, plan, how.group, score, how)
            _add(into, drawn, ode, starts, rewards, how)
            done(choice.label, into.samples)
    return found


def _starts(plan: Any, group: int) -> list[int]:
    """Which initial noise of its prompt each finished sample began with; tokens have none, and one greedy answer."""
    if not hasattr(plan, "tree"):
        return [0] * group
    tree = plan.tree(group)
    return [tree.segments[tree.path(leaf)[0]].start for leaf in tree.leaves]


def _ode(
    policy: AnyPolicy,
    recipe: Recipe,
    part: Sequence[Prompt],
    score: Score,
    how: Setting,
    number: int,
    known: list[tuple[Any, Part]],
) -> Part:
    """`number` ODE samples (or one greedy completion) a prompt; those of an earlier value where they are the same."""
    greedy = None if recipe.generation is None else 0.0
    own = recipe.eval.model_copy(update={"steps": None, "temperature": greedy})  # as many steps as the samples take
    recipe = recipe.model_copy(update={"eval": own})
    plan = eval_plan(recipe)
    token = recipe.generation
    way = (plan, number, recipe.pipeline if token is None else (token.chat_template, token.system))
    for other, found in known:
        if other == way:
            return found
    known.append((way, _rollout(policy, part, plan, number, score, how)))
    return known[-1][1]


def _rollout(policy: AnyPolicy, part: Sequence[Prompt], plan: Any, group: int, score: Score, how: Setting) -> Part:
    forwards = 0

    def count(number: int) -> None:
        nonlocal forwards
        forwards += number

    policy.tick = count
    start = time.perf_counter()
    samples = policy.rollout(part, group_size=group, plan=plan, seed=how.seed).samples
    seconds = time.perf_counter() - start
    policy.tick = None
    return Part(samples, score(samples), seconds, forwards)


def _total(part: Part, rewards: Mapping[str, RewardSpec]) -> torch.Tensor:
    """The reward of each sample, [B]; NaN where all trained ones compare samples, and each is alone."""
    found = counted_rewards(rewards, part.rewards, part.samples.prompts, part.samples.group).total
    return torch.full((len(part.samples),), torch.nan) if found is None else found


def _add(
    into: Drawn, drawn: Part, ode: Part, starts: Sequence[int], rewards: Mapping[str, RewardSpec], how: Setting
) -> None:
    number = int(drawn.samples.group.max()) + 1
    every = max(starts) + 1
    pairs = torch.tensor([prompt * every + start for prompt in range(number) for start in starts])
    total, ode_total = (_total(part, rewards) for part in (drawn, ode))
    for name, values in {**drawn.rewards, "total": total}.items():
        into.rewards[name].append(values.view(number, -1))
    for name, values in {**ode.rewards, "total": ode_total}.items():
        into.ode[name].append(values[pairs].view(number, -1))
    into.once.append(ode_total)
    into.distances.append(_distance(drawn.samples, ode.samples, pairs).view(number, -1))
    into.statistics.append((len(drawn.samples), sample_statistics(drawn.samples)))
    into.ode_statistics.append((len(ode.samples), sample_statistics(ode.samples)))
    into.samples += len(drawn.samples)
    into.seconds.append(drawn.seconds / len(drawn.samples))
    into.forwards += drawn.forwards
    into.ode_samples += len(ode.samples)
    into.ode_forwards += ode.forwards
    for prompt in range(min(number, how.show - len(into.shots))):
        into.shots.append(_shot(drawn, ode, total, ode_total, prompt, number, every, how.members))


def _distance(samples: Samples, ode: Samples, pairs: Tensor) -> Tensor:
    """Root-mean-square pixel distance to the ODE's sample, float32 [B], of videos by the middle frame.

    Of sound it is that of spectrograms.

    Of texts: whether the completion is another one than the greedy one.
    """
    pictures, others = picture_of(samples), picture_of(ode)
    if pictures is None or others is None:
        texts, greedy = samples.texts or (), ode.texts or ()
        return torch.tensor([float(text != greedy[i]) for text, i in zip(texts, pairs.tolist(), strict=True)])
    gap = pictures.float() - others.float()[pairs.to(others.device)]
    return gap.square().mean((1, 2, 3)).sqrt().cpu()


def _shot(
    drawn: Part, ode: Part, total: Tensor, ode_total: Tensor, prompt: int, number: int, every: int, members: int
) -> Shot:
    size = len(drawn.samples) // number
    at, first = range(prompt * size, prompt * size + min(members, size)), prompt * every
    shot = Shot(drawn.samples.prompts[at[0]].text, [float(ode_total[first]), *total[list(at)].tolist()])
    pictures, others = picture_of(drawn.samples), picture_of(ode.samples)
    if pictures is not None and others is not None:
        shot.pictures = torch.cat([others[first : first + 1], pictures[at[0] : at[-1] + 1]]).float().cpu()
    elif drawn.samples.texts is not None and ode.samples.texts is not None:
        shot.texts = [ode.samples.texts[first], *(drawn.samples.texts[i] for i in at)]
    return shot


def measured(label: str, drawn: Drawn) -> Row:
    """The measures of what was drawn for one value."""
    rewards = {name: torch.cat(parts) for name, parts in drawn.rewards.items()}
    ode = {name: torch.cat(parts) for name, parts in drawn.ode.items()}
    spread, silent = spreads(rewards["total"])
    gaps = {name: paired(values, ode[name]) for name, values in rewards.items()}
    return Row(
        label=label,
        spreads=spread,
        qualities=gaps["total"],
        silent=float(silent.double().mean()),
        reward=mean(by_prompt(rewards["total"])),
        ode=mean(by_prompt(ode["total"])),
        deviation=deviation(torch.cat(drawn.once)),
        by_reward={n: (mean(by_prompt(v)), mean(gaps[n])) for n, v in rewards.items() if n != "total"},
        distance=mean(torch.cat(drawn.distances).double().mean(1)),
        statistics=_pooled(drawn.statistics),
        ode_statistics=_pooled(drawn.ode_statistics),
        seconds=statistics.median(drawn.seconds),
        forwards=drawn.forwards / drawn.samples,
        ode_forwards=drawn.ode_forwards / drawn.ode_samples,
    )


def _pooled(parts: Sequence[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """Statistics of all samples from those of parts, weighted by their sizes."""
    whole = sum(number for number, _ in parts)
    return {name: sum(n * found[name] for n, found in parts) / whole for name in parts[0][1]}
