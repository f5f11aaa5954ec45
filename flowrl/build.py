"""Builds the parts of a run from a recipe: prompts and rewards, policy, optimizer, loss."""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor

from flowrl import names
from flowrl.contracts import (
    ALONE,
    Drawing,
    Explore,
    Explored,
    Objective,
    Policy,
    Prompt,
    Ranks,
    Rollout,
    Samples,
    Score,
)
from flowrl.core.advantages.combined import advantage_metrics, combined_reward, group_stats
from flowrl.core.advantages.decisions import DecisionCredit, KlReward, kl_as_reward
from flowrl.core.advantages.early_calls import shifted
from flowrl.core.advantages.process import decision_rewards
from flowrl.core.advantages.rows import row_advantages
from flowrl.core.advantages.trees import CREDITS as TREE_CREDITS
from flowrl.core.advantages.trees import tree_advantages
from flowrl.core.budget import Budget
from flowrl.core.engine import Advantage
from flowrl.core.objectives.balance import SubTrajectoryBalance
from flowrl.core.objectives.correction import Correction, Rejection
from flowrl.core.objectives.covariance import Covariance
from flowrl.core.objectives.given import GivenObjective
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.objectives.noised import NOISED
from flowrl.core.objectives.paired import PAIRED
from flowrl.core.objectives.perception import Perception
from flowrl.core.objectives.pulled import PULLED, SRPOObjective
from flowrl.core.objectives.texts import TEXTS
from flowrl.core.selection import WidthPruning
from flowrl.kinds import kind_of
from flowrl.planning.trials import Guarded, report_errors
from flowrl.planning.walks import pruned_widths
from flowrl.policies.computing import allow_tf32
from flowrl.policies.devices import device_of
from flowrl.reading.inputs import phase_prompts, read_prompts
from flowrl.reading.prompt_memory import Observed
from flowrl.recipe.checks.process import check_process
from flowrl.recipe.making import build_part
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import Own, keys
from flowrl.scoring.gates import counted_rewards
from flowrl.scoring.scorer import Scorer
from flowrl.scoring.scorer import load as load_rewards
from flowrl.scoring.truths import check_truths
from flowrl.watch.rules import OwnRule
from flowrl.watch.watchdog import Watchdog, WatchSettings


@dataclass(frozen=True)
class Inputs:
    """What a run reads before it loads weights. by_phase: the training prompts of each phase."""

    train: list[Prompt]
    heldout: list[Prompt]
    scorer: Scorer
    by_phase: list[list[Prompt]] = field(default_factory=list)


def read_inputs(recipe: Recipe) -> Inputs:
    """Reads prompts and rewards. Raises UserError if a file or a reward is invalid."""
    train, heldout = read_prompts(recipe, online=True)
    scorer, by_phase = build_scorer(recipe), phase_prompts(recipe, train, online=True)
    if kind_of(recipe).texts:
        for part, prompts in zip(recipe.parts(), by_phase, strict=True):
            if part.train.source == "rollouts":
                check_truths(scorer, prompts, part.prompts.train)
        check_truths(scorer, heldout, recipe.prompts.heldout)
    return Inputs(train, heldout, scorer, by_phase)


def build_scorer(recipe: Recipe) -> Scorer:
    """The rewards of a recipe. Raises RewardError for one that cannot be set up, UserError for one out of place."""
    rewards = load_rewards(recipe.rewards)
    check_process(recipe, [name for name, reward in rewards.items() if reward.process])
    return Scorer(rewards, device=device_of(recipe.device))


def build_policy(recipe: Recipe) -> Policy:
    """The recipe's model as a policy, with what it trains made trainable."""
    return kind_of(recipe).building.build(recipe)


def add_reference(recipe: Recipe, policy: Policy) -> None:
    """Gives the policy what its divergence is measured from; before it is prepared, and before its learner is built."""
    kind_of(recipe).building.add_reference(policy, recipe)


def build_objective(recipe: Recipe) -> Objective:
    """The loss of a recipe."""
    objective = recipe.objective
    if isinstance(objective, Own):
        return GivenObjective(Guarded("objective.kind", objective.kind, build_part("objective", objective)))
    if objective.loss is not None:
        if kind_of(recipe).texts:
            return TEXTS[objective.loss.kind](**{n: v for n, v in objective.loss.given.items() if n != "view"})
        if objective.loss.pulls:
            return PULLED[objective.loss.kind](kl=objective.kl, **objective.loss.given, **_aligned(recipe))
        more = {"size": recipe.train.group} if objective.loss.kind == "dgpo" else {}
        return (NOISED | PAIRED)[objective.loss.kind](kl=objective.kl, **objective.loss.given, **more)
    low, high = objective.clip_range
    if objective.kl_in == "reward":
        objective = objective.model_copy(update={"kl": 0.0})
    values = {p.name: getattr(objective, p.name) for p in keys("objective", names.shipped("objective")["clipped"])}
    values["weight"] = values["weight"] if isinstance(values["weight"], str) else tuple(values["weight"])
    covariance = None if objective.covariance is None else Covariance(**objective.covariance.model_dump())
    given = objective.perception
    seeing = None if given is None else Perception(**given.model_dump(exclude={"view"}))
    return ClippedObjective(
        low, high, **values, correction=build_correction(recipe), covariance=covariance, perception=seeing
    )


def build_correction(recipe: Recipe) -> Correction | None:
    """What is done about samples of another policy. Unsaid: tis for a server's; for a copy's, the gap is measured."""
    given = recipe.objective.correction
    if given is None and recipe.rollout.engine is not None:
        return Correction()
    if given is None:
        return None if recipe.rollout.dtype is None else Correction("none", bypass=True)
    values = given.model_dump()
    return Correction(**values | {"reject": tuple(Rejection(**one) for one in values["reject"])})


def _aligned(recipe: Recipe) -> dict[str, Any]:
    """The table of an objective whose discounts go by it, as noise_draws.align has it."""
    levels = recipe.sampler.levels
    if levels is None or levels.kind != "align":
        return {}
    high, low, number = SRPOObjective.table
    given = zip((levels.high, levels.low, levels.number), (high, low, number), strict=True)
    return {"table": tuple(usual if value is None else value for value, usual in given)}


def build_watch(recipe: Recipe) -> Watchdog:
    """The watchdog of a recipe, without any history."""
    return Watchdog(
        {name: spec.weight for name, spec in recipe.rewards.items()},
        WatchSettings(**recipe.watch.model_dump(exclude={"rules"})),
        updates_per_rollout=recipe.train.epochs * recipe.train.updates,
        clip=recipe.objective.clip_range,
        precision=recipe.dtype.model,
        steady=not recipe.sampler.window.slides,
        rules=[
            OwnRule(rule.alarm, Guarded("watch.rules", rule.kind, build_part("rule", rule)), str(rule))
            for rule in recipe.watch.rules
        ],
    )


def build_advantage(recipe: Recipe, scorer: Scorer) -> Advantage:
    """The function from the rewards of samples to the advantages of rows, and their metrics."""

    def advantage(rewards: dict[str, Tensor], rollout: Rollout) -> tuple[Tensor, dict[str, float]]:
        samples, group = rollout.samples, rollout.samples.group // recipe.train.pool
        if not recipe.scores_train:
            return torch.zeros(len(rollout.rollout_logp)), {}
        counted = counted_rewards(scorer.specs, rewards, samples.prompts, samples.group, samples)
        how: dict[str, Any] = {"weights": counted.weights, "asked": counted.asked}
        lengths = {"lengths": samples.lengths, "given": rollout.baseline}
        if isinstance(recipe.advantage, Own):
            with report_errors("advantage.kind", recipe.advantage.kind):
                adv = build_part("advantage", recipe.advantage, how | lengths)(counted.rewards, rollout)
            adv = adv.masked_fill(adv.isnan(), 0.0)  # of a row that could not be scored: it gets no gradient
            return adv, advantage_metrics(rewards, group, adv, total=counted.total, **how)
        kind = recipe.advantage.credit.kind
        if kind in TREE_CREDITS:
            options = recipe.advantage.model_dump(exclude={"credit", "early"}) | lengths
            adv = tree_advantages(kind, counted.total, rollout, **options)  # pyright: ignore
            return adv, advantage_metrics(rewards, group, adv, total=counted.total, **how)
        kl, counted_of, paid = kl_reward(recipe), dict(counted.rewards), dict(counted.weights)
        options = recipe.advantage.model_dump(exclude={"credit", "early"}) | lengths
        credit = decision_credit(recipe)
        if kl is not None and credit is None:
            counted_of["kl"], paid["kl"] = kl_as_reward(kl, rollout)
            if rollout.baseline is not None:
                options["given"] = rollout.baseline | {"kl": torch.zeros(len(samples))}
        if credit is not None:
            options |= {"clip": None} | ({"scale": "none"} if credit.whitened else {})
        placed, unscored = None, combined_reward(*counted).isnan()
        if credit is not None:
            given: dict[str, Any] = how | {"unscored": unscored, "options": options}
            placed, paid = decision_rewards(credit.kind, counted.rewards, rollout, group, **given)
        adv = torch.zeros(len(rollout.mask))
        if placed is None or any(paid.values()):
            adv = row_advantages(counted_of, group, rollout.credit, **how | {"weights": paid}, **options)
        if recipe.advantage.early is not None:
            total = combined_reward(*counted) if counted.total is None else counted.total
            adv = shifted(adv, total, rollout, **recipe.advantage.early.model_dump())
        metrics = advantage_metrics(rewards, group, adv, total=counted.total, **how)
        loss = recipe.objective.loss
        rewarded = loss is not None and loss.reads_rewards
        if loss is not None and loss.reads_flows:
            adv = SubTrajectoryBalance(**loss.given).log_reward(adv)  # pyright: ignore
        if kl is not None:
            metrics["kl_reward"] = float(kl.of(rollout).sum() / rollout.mask.sum().clamp(min=1))
        if credit is None:
            return adv.masked_fill(unscored.to(adv.device), torch.nan) if rewarded else adv, metrics
        adv = credit(adv, rollout, placed=placed, unscored=unscored, kl=kl)
        adv = adv if recipe.advantage.clip is None else adv.clamp(-recipe.advantage.clip, recipe.advantage.clip)
        metrics |= {"adv/abs_mean": float(adv.abs().sum() / rollout.mask.sum().clamp(min=1))}
        return adv.masked_fill(unscored[:, None].to(adv.device), torch.nan) if rewarded else adv, metrics

    return advantage


def remembered(recipe: Recipe, scorer: Scorer, rewards: dict[str, Tensor], samples: Samples) -> Tensor:
    """What a run remembers of samples, float [B]: the reward that prompts.remember names, or the weighted sum.

    NaN where it could not be scored.
    """
    if (name := recipe.prompts.remember) is not None:
        return rewards[name]
    total = counted_rewards(scorer.specs, rewards, samples.prompts, samples.group).total
    return torch.full((len(samples),), torch.nan) if total is None else total


def observed(recipe: Recipe, scorer: Scorer, rewards: dict[str, Tensor], samples: Samples) -> Observed:
    """Mean and std of what a run remembers, of each prompt of an iteration, by id; nothing where nothing was scored."""
    if not rewards:
        return {}
    value = remembered(recipe, scorer, rewards, samples)
    stats = group_stats(value, samples.group)
    first = dict(zip(reversed(stats.index.tolist()), reversed(samples.prompts), strict=True))
    mean = stats.mean.masked_fill(stats.count == 0, torch.nan).tolist()
    return {first[i].id: (mean[i], std) for i, std in enumerate(stats.std.tolist())}


def build_budget(recipe: Recipe, scorer: Scorer) -> Budget | None:
    """How many more samples hard prompts get; None without train.budget."""
    given = recipe.train.budget
    if given is None:
        return None

    def value(rewards: dict[str, Tensor], rollout: Rollout) -> Tensor:
        return remembered(recipe, scorer, rewards, rollout.samples)

    return Budget(recipe.train.group, given.limit, given.kind, given.std, value)


def build_explore(recipe: Recipe, scorer: Scorer, unfinished: Any = None, ranks: Ranks = ALONE) -> Explore | None:
    """How samples are drawn in more than one go; None where they are drawn plainly. unfinished: of earlier draws;
    ranks: those that draw together."""
    draw = kind_of(recipe).building.exploration(recipe, unfinished, ranks)
    if draw is None:
        return None

    def explore(policy: Policy, drawing: Drawing, score: Score) -> Explored | None:
        def score_all(samples: Samples) -> tuple[dict[str, Tensor], Tensor]:
            rewards = score(samples)
            counted = counted_rewards(scorer.specs, rewards, samples.prompts, samples.group, samples)
            return rewards, counted.total  # pyright: ignore

        return draw(policy, drawing, score_all)

    return explore


def kl_reward(recipe: Recipe) -> KlReward | None:
    """The divergence that a recipe has in its rewards; of flows with a prior, the log-ratios to it."""
    objective = recipe.objective
    if objective.loss is not None and objective.loss.reads_flows and objective.loss.prior == "reference":
        return KlReward(1.0, "k1")
    paid = objective.kl_in == "reward" and objective.kl > 0
    return KlReward(objective.kl, objective.kl_kind) if paid else None


def decision_credit(recipe: Recipe) -> DecisionCredit | None:
    """How a recipe's rewards reach single decisions; None where all decisions of a row get the same."""
    credit = recipe.advantage.credit
    if credit.kind in ("broadcast", *TREE_CREDITS):
        return None
    return DecisionCredit(**credit.model_dump(), whitened=recipe.advantage.scale == "whiten")


def width_pruning(recipe: Recipe, iteration: int) -> WidthPruning | None:
    """The decisions after the last split of its trees that an iteration leaves out; None if it leaves out none."""
    if recipe.sampler.tree is None:
        return None
    pruned = pruned_widths(recipe, iteration)
    return None if pruned is None else WidthPruning(torch.tensor(pruned[0]), *pruned[1:])


def set_up(recipe: Recipe) -> None:
    """Sets threads, TF32 and global seeds. A run does not depend on global generators itself; a user's reward may."""
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    allow_tf32(recipe.dtype.tf32)
    torch.manual_seed(recipe.seed)
    numpy.random.seed(recipe.seed)
    random.seed(recipe.seed)
