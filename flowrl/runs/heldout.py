"""Measurements on a run's held-out prompts: rewards and, if the recipe asks for it, the divergence from the base."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowrl.contracts import ALONE, Policy, Progress, Prompt, Samples
from flowrl.core.evaluation import Evaluation, divergence, evaluate, mean
from flowrl.kinds import kind_of
from flowrl.planning.costs import eval_plan, plan_for
from flowrl.recipe.schema import Recipe
from flowrl.report.evaluations import evenly_spaced
from flowrl.runs.ahead import batches_ahead
from flowrl.scoring.gates import counted_rewards
from flowrl.scoring.scorer import Scorer
from flowrl.watch.hacking import KL, HeldoutMean

ScoreFunction = Callable[[Samples], dict[str, Tensor]]
EVAL_SEED = 2**32  # added to the run's seed, so that evaluation noise is never training noise
KL_SEED = 3 * 2**32  # and the noise of a divergence is neither
KL_PROMPTS = 8
PAIRS = 20  # fewer say too little of their own spread


def evaluate_heldout(
    recipe: Recipe, policy: Policy, prompts: Sequence[Prompt], score: ScoreFunction, **more: Any
) -> Evaluation:
    """Scores under the policy's weights as they are, on the recipe's own evaluation noise; more: see `evaluate`."""
    plan, seed = eval_plan(recipe), recipe.seed + EVAL_SEED
    source = kind_of(recipe).building.evaluated(policy, recipe)
    batch = recipe.eval.batch
    with batches_ahead(recipe, policy, prompts, batch, more.get("ranks", ALONE)):
        evaluation = evaluate(
            source, prompts, score, plan=plan, seed=seed, batch=batch, each=recipe.eval.samples, **more
        )
    if isinstance(score, Scorer):
        score.judge.settle(apart=True)
    trained = [spec for name, spec in recipe.rewards.items() if spec.weight and name in evaluation.scores]
    if len(trained) > 1 or any(spec.gate is not None for spec in trained):
        return replace(evaluation, total=counted_rewards(recipe.rewards, evaluation.scores, prompts).total)
    return evaluation


def times_due(recipe: Recipe, seconds: float) -> int:
    """The number of multiples of eval.every_seconds in so many seconds of iterations."""
    every = recipe.eval.every_seconds
    return 0 if every is None else int(seconds // every)


def evaluation_is_due(recipe: Recipe, done: int, ended: bool, spent: tuple[float, int]) -> bool:
    """Whether an evaluation is due after `done` iterations; spent: seconds of them, and `times_due` at the last."""
    at = recipe.eval
    if done == 0 or ended:
        return at.at_start if done == 0 else at.at_end
    return bool(at.every and done % at.every == 0) or times_due(recipe, spent[0]) > spent[1]


def trained_mean(evaluation: Evaluation, weights: Mapping[str, float]) -> float:
    """The mean of the weighted sum of held-out rewards; NaN if none is known."""
    if evaluation.total is not None:
        return mean(evaluation.total).value
    means = evaluation.means()
    return sum(
        [weight * means[name].value for name, weight in weights.items() if weight and name in means] or [math.nan]
    )


def paired_rises(
    now: Evaluation, earlier: Mapping[int, Evaluation], weights: Mapping[str, float]
) -> dict[int, HeldoutMean]:
    """By iteration, the rise of the weighted sum of rewards since each earlier evaluation of the same prompts.

    It is the mean of the differences of samples of equal prompt and noise, with its standard error. An evaluation of
    other prompts, or with fewer than PAIRS of samples that both could score, or all of whose differences are equal, is
    left out.
    """
    after, rises = _trained_scores(now, weights), {}
    for iteration, evaluation in earlier.items():
        before = _trained_scores(evaluation, weights)
        if after is None or before is None or [p.id for p in evaluation.prompts] != [p.id for p in now.prompts]:
            continue
        rise = mean(after - before)
        if rise.number >= PAIRS and rise.error > 0:
            rises[iteration] = HeldoutMean(rise.value, rise.error)
    return rises


def _trained_scores(evaluation: Evaluation, weights: Mapping[str, float]) -> Tensor | None:
    """The weighted sum of rewards of each sample, [B]; None if no trained reward was scored."""
    if evaluation.total is not None:
        return evaluation.total
    parts = [
        weight * evaluation.scores[name] for name, weight in weights.items() if weight and name in evaluation.scores
    ]
    return torch.stack(parts).sum(0) if parts else None


def judged_mean(recipe: Recipe, evaluation: Evaluation, weights: Mapping[str, float]) -> float:
    """What evaluations are compared by: the mean of the reward eval.best, or of the trained ones; NaN if unknown."""
    if recipe.eval.best is None:
        return trained_mean(evaluation, weights)
    found = evaluation.means().get(recipe.eval.best)
    return math.nan if found is None else found.value


def kl_to_base(
    recipe: Recipe, policy: Policy, prompts: Sequence[Prompt], *, progress: Progress | None = None
) -> dict[str, float]:
    """The policy's divergence from the base on a few held-out prompts, if the recipe asks for it.

    Every step of a denoising walk but the last draws noise, whatever the plan of training: all evaluations, and runs
    with other windows, are on one scale; where the noise follows a curve, it is that of the first iteration.
    """
    if recipe.watch.kl_to_base is None:
        return {}
    if recipe.changes:
        kind_of(recipe).building.retune(policy, recipe)
    return {
        KL: divergence(
            policy,
            evenly_spaced(list(prompts), KL_PROMPTS),
            plan=plan_for(kind_of(recipe).plain(recipe), 0),
            seed=recipe.seed + KL_SEED,
            batch=min(recipe.train.micro_rows or KL_PROMPTS, recipe.eval.batch),
            progress=progress,
        )
    }
