"""One iteration: rollout, score, advantage, update. It knows no model, and not what a decision is.

prompts --policy.rollout--> Rollout --score--> rewards [B] --advantage--> [R] or [R, K]
                               |                                            |
                               +--policy.look, part by part----> objective --> loss weights --> backward
                                                                                 --> learner.step, once an update

The last line of this picture is update.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowrl.contracts import (
    ALONE,
    Explore,
    Looks,
    Objective,
    Policy,
    Progress,
    Prompt,
    Ranks,
    RewardOf,
    Rollout,
    Samples,
)
from flowrl.core.budget import Budget, topped_up
from flowrl.core.engine import Advantage, Clock, GivenEngine, LocalEngine, Metrics, MixedEngine, PlanT, SamplesOf
from flowrl.core.filling import filling
from flowrl.core.learning.learner import Learner
from flowrl.core.ranked import RankedEngine, RankedLooks
from flowrl.core.refill import JoinedPolicy, kept_draw, kept_groups, whole_draw
from flowrl.core.selection import prune_width, selected_rows, without_rows, without_silent
from flowrl.core.terms import Term
from flowrl.core.update import Settings, update
from flowrl.core.values import Critic, fitted_decisions, value_metrics


@dataclass
class Iteration:
    """What came of one iteration: metrics, and all samples that were drawn with their rewards.

    own: the samples that this rank drew, with their pixels, which `samples` then lacks (None: they are all).
    """

    metrics: Metrics
    samples: Samples
    rewards: dict[str, Tensor]
    own: Sequence[Samples] | None = None


def iterate(
    policy: Policy[PlanT],
    learner: Learner,
    prompts: Sequence[Prompt],
    *,
    plan: PlanT,
    seed: int,
    first: int,
    score: Callable[[Samples], dict[str, Tensor]],
    advantage: Advantage,
    objective: Objective,
    settings: Settings,
    enter: Callable[[str], None] = lambda name: None,
    more: Callable[[int], Sequence[Prompt]] | None = None,
    progress: Progress | None = None,
    finished: Callable[[Samples], None] | None = None,
    reward_of: RewardOf | None = None,
    samples_of: SamplesOf | None = None,
    baseline_plan: PlanT | None = None,
    budget: Budget | None = None,
    explore: Explore | None = None,
    together: bool = False,
    critic: Critic | None = None,
    resample: Callable[[Rollout, Tensor, dict[str, Tensor]], tuple[Rollout, Tensor]] | None = None,
    terms: Callable[[Rollout, dict[str, Tensor], Tensor], Sequence[Term]] | None = None,
    ranks: Ranks = ALONE,
    settle: Callable[[], None] = lambda: None,
) -> Iteration:
    """Draws, scores and learns once from `settings.group` samples of each prompt.

    plan is the policy's own affair. seed and first name the noise (see `Policy.rollout`); draw number i begins at
    first + i * stride, so that an iteration uses up (1 + refill) * stride of them. advantage gives advantages of rows,
    [R], or of decisions, [R, K], and their metrics from the rewards and the rollout. more gives so many further
    prompts, which a refill needs. progress, finished: see `Policy`; reward_of: see `Batch`. samples_of: gives the
    samples of a prompt and their scores, which are taken as advantages; nothing is drawn then, and nothing scored, but
    with `settings.share`, where they are some of the samples that are scored.
    baseline_plan: draws a further sample of each prompt; explore: draws the samples in another way, together: and waits
    for other ranks as it does; see `LocalEngine`.
    budget: gives hard prompts more samples, which take the numbers of noise behind those of their group. critic: gives
    the values that advantages read, and is fitted to the returns; in its first `warmup` iterations it alone learns.
    resample: gives the rollout as its rows are drawn anew, with their advantages, before anything learns from them.
    terms: of the rollout that is trained, its rewards and advantages, gives what is added to the objective.
    ranks: the processes that iterate together, all with the same arguments. Each calls `score` with its own samples,
    and `settle` once all have done so, where what `score` could not do is judged.
    Metrics named time_* are seconds; all others repeat under the same seed, and are of all that was drawn.
    """
    clock = Clock(enter)
    local = LocalEngine(
        policy,
        plan,
        seed,
        settings.group,
        score,
        advantage,
        clock,
        progress,
        finished,
        lambda: learner.sampling(old=settings.sample_old),
        baseline_plan,
        explore,
        filling(policy, critic, settings.kl_in_reward, settings.at_once, progress),
        together,
    )
    engine: GivenEngine[PlanT] | MixedEngine[PlanT] | LocalEngine[PlanT] | RankedEngine = local
    if samples_of is not None and settings.share is None:
        engine = GivenEngine(policy, plan, seed, samples_of, clock)  # pyright: ignore - it takes samples
    elif samples_of is not None:
        engine = MixedEngine(local, policy, samples_of, settings.share or 0.0, settings.pool)  # pyright: ignore
    looks: Looks = policy
    if ranks.size > 1:
        waits = together and engine is local
        engine = RankedEngine(engine, advantage, clock, ranks, settle, settings.pool, waits)
        looks = RankedLooks(policy)
    one = looks
    draws, ended = [engine.draw(prompts, first)], settings.skip_truncated
    while more is not None and len(draws) <= settings.refill and (missing := len(prompts) - kept_groups(draws, ended)):
        draws.append(engine.draw(more(missing), first + len(draws) * settings.stride))
    whole = used = draws[0]
    if budget is not None and isinstance(engine, (LocalEngine, RankedEngine)):
        draw, behind = engine.draw, first + settings.group
        whole, joined = topped_up(whole, budget, prompts, lambda p, more: draw(p, behind, more), advantage)
        used, looks = whole, JoinedPolicy(one) if joined else one
    if settings.refill or settings.most is not None:
        whole = whole_draw(draws, advantage, ended)
        if kept_groups(draws, ended):
            looks, used = JoinedPolicy(one), kept_draw(draws, advantage, ended, settings.most)
    rollout, adv, metrics = used.rollout, used.adv, whole.metrics
    if resample is not None:
        rollout, adv = resample(rollout, adv, used.rewards)
        metrics |= {"resampled": float(rollout.mask.any(1).float().mean())}
    if critic is not None:
        own_values = critic.looks if ranks.size == 1 else RankedLooks(critic.looks)
        values = own_values if looks is one else JoinedPolicy(own_values)
        with clock.phase("train"):
            metrics |= _fit(critic, values, rollout, settings, progress, ranks)
    if settings.skip_truncated:
        rollout, adv = _without_truncated(rollout, adv)
    if settings.keep is not None:
        rollout, adv = selected_rows(rollout, adv, settings.keep, settings.keep_by)
    if settings.width is not None:
        rollout = prune_width(rollout, adv, settings.width)
    if settings.drop_silent:
        rollout = without_silent(rollout, adv)
    if critic is not None and settings.iteration < critic.warmup:
        rollout, adv = without_rows(rollout, adv, torch.ones(len(rollout.rollout_logp), dtype=torch.bool))
    with clock.phase("train"):
        added = () if terms is None else [_seen_by(t, looks) for t in terms(rollout, used.rewards, adv)]
        metrics |= update(looks, learner, rollout, adv, objective, settings, progress, reward_of, added, ranks)
    metrics |= {f"time_{name}": seconds for name, seconds in clock.seconds.items()}
    own = engine.samples if isinstance(engine, RankedEngine) else None
    return Iteration(metrics, whole.rollout.samples, whole.rewards, own)


def _fit(
    critic: Critic, looks: Looks, rollout: Rollout, settings: Settings, progress: Progress | None, ranks: Ranks
) -> Metrics:
    """Fits the critic to a rollout's returns; its metrics are named value/*."""
    metrics, fitted = value_metrics(rollout), replace(rollout, mask=fitted_decisions(rollout))
    own = replace(settings, epochs=critic.epochs, updates=critic.updates, drop_silent=False, update_by="prompts")
    none = torch.zeros(len(rollout.rollout_logp))
    found = update(looks, critic.learner, fitted, none, critic.objective, own, progress, ranks=ranks)
    kept = ("loss", "error", "clip_frac", "grad_norm", "lr", "nonfinite_updates", "loss_scale", "skipped_updates")
    return metrics | {f"value/{name}": found[name] for name in kept if name in found}


def _seen_by(term: Term, looks: Looks) -> Term:
    """The term of the rollout that is trained, with what looks at that one."""
    return replace(term, looks=looks) if term.own else term


def _without_truncated(rollout: Rollout, adv: Tensor) -> tuple[Rollout, Tensor]:
    """The rollout with the rows of truncated samples masked, and their advantages 0, so that nothing replays them."""
    cut = rollout.samples.truncated
    if cut is None:
        raise ValueError("the policy does not say which samples it truncated: set train.skip_truncated=false")
    if rollout.credit is not None:
        raise ValueError("only rows that are samples can be truncated: set train.skip_truncated=false")
    return without_rows(rollout, adv, cut)
