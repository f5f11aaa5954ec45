"""One iteration: rollout, score, advantage, update. It knows no model, and not what a decision is.

prompts --policy.rollout--> Rollout --score--> rewards [B] --advantage--> [R] or [R, K]
                               |                                            |
                               +--policy.look, part by part----> objective --> loss weights --> backward
                                                                                 --> learner.step, once an update

How a loss becomes a gradient, also where it needs rows as a whole and the policy gives columns, is in backward.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowrl.contracts import Explore, Looks, Objective, Policy, Progress, Prompt, RewardOf, Rollout, Samples
from flowrl.core.backward import StepLoss, backward, fill_reference, with_step_weights
from flowrl.core.backward_noised import backward_noised
from flowrl.core.backward_pull import backward_pull
from flowrl.core.budget import Budget, topped_up
from flowrl.core.engine import Advantage, Clock, GivenEngine, LocalEngine, Metrics, MixedEngine, PlanT, SamplesOf
from flowrl.core.filling import filling, parts, weighed
from flowrl.core.learner import Learner
from flowrl.core.objectives.aggregate import weights
from flowrl.core.pairs import companions
from flowrl.core.refill import JoinedPolicy, kept_draw, kept_groups, whole_draw
from flowrl.core.selection import (
    WidthPruning,
    moved_rows,
    prune_width,
    rank_shares,
    selected_rows,
    without_rows,
    without_silent,
)
from flowrl.core.terms import Term
from flowrl.core.values import Critic, fitted_decisions, value_metrics


@dataclass(frozen=True)
class Settings:
    """How a rollout is used: `epochs` passes of `updates` optimizer steps each, `micro_batch` rows at once (None: all).

    The rows of an update are cut in order; losses are weighted over the whole update, so that the cut into
    micro-batches changes nothing. refill: how often groups without any advantage are left out and as many drawn of
    other prompts. skip_truncated: samples that their limit ended count in their group's statistics and not in the loss.
    keep: of rows that are compared, how many are trained (None: all); keep_by: the extreme ones, or those of largest
    magnitude. members: numbers of noise that a draw uses up (None: as many as samples). update_by: prompts, or steps:
    an update takes the rows of some steps of all prompts, where each row has one. drop_silent: rows whose advantage is
    0 leave the loss before it is divided, and updates take equal shares of the others. width: decisions of a branching
    tree that are left out. pairs: of each group, how many an objective of pairs takes. sample_old: whether the older
    copy of the weights draws the samples. share: of the prompts, whose groups begin with the samples that they come
    with (None: there are none, or nothing is drawn). pool: prompts beside each other that are compared as one.
    kl_in_reward: whether the rewards of decisions contain a divergence from the reference, which is then looked up
    before there are advantages. iteration: how many were done before. coef: of the
    objective, where terms stand beside it.
    """

    group: int
    epochs: int = 1
    updates: int = 1
    micro_batch: int | None = None
    refill: int = 0
    skip_truncated: bool = False
    keep: int | None = None
    keep_by: str = "extremes"
    members: int | None = None
    update_by: str = "prompts"
    drop_silent: bool = False
    width: WidthPruning | None = None
    pairs: int = 1
    sample_old: bool = False
    share: float | None = None
    pool: int = 1
    kl_in_reward: bool = False
    iteration: int = 0
    coef: float = 1.0

    @property
    def stride(self) -> int:
        """How far the noise of two draws lies apart."""
        return self.group if self.members is None else self.members


@dataclass
class Iteration:
    """What came of one iteration: metrics, and all samples that were drawn with their rewards."""

    metrics: Metrics
    samples: Samples
    rewards: dict[str, Tensor]


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
    critic: Critic | None = None,
    terms: Callable[[Rollout, dict[str, Tensor], Tensor], Sequence[Term]] | None = None,
) -> Iteration:
    """Draws, scores and learns once from `settings.group` samples of each prompt.

    plan is the policy's own affair. seed and first name the noise (see `Policy.rollout`); draw number i begins at
    first + i * stride, so that an iteration uses up (1 + refill) * stride of them. advantage gives advantages of rows,
    [R], or of decisions, [R, K], and their metrics from the rewards and the rollout. more gives so many further
    prompts, which a refill needs. progress, finished: see `Policy`; reward_of: see `Batch`. samples_of: gives the
    samples of a prompt and their scores, which are taken as advantages; nothing is drawn then, and nothing scored, but
    with `settings.share`, where they are some of the samples that are scored.
    baseline_plan: draws a further sample of each prompt; explore: draws the samples in another way; see `LocalEngine`.
    budget: gives hard prompts more samples, which take the numbers of noise behind those of their group. critic: gives
    the values that advantages read, and is fitted to the returns; in its first `warmup` iterations it alone learns.
    terms: of the rollout that is trained, its rewards and advantages, gives what is added to the objective.
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
        filling(policy, critic, settings.kl_in_reward, settings.micro_batch, progress),
    )
    engine: GivenEngine[PlanT] | MixedEngine[PlanT] | LocalEngine[PlanT] = local
    if samples_of is not None and settings.share is None:
        engine = GivenEngine(policy, plan, seed, samples_of, clock)  # pyright: ignore - it takes samples
    elif samples_of is not None:
        engine = MixedEngine(local, policy, samples_of, settings.share or 0.0, settings.pool)  # pyright: ignore
    looks: Looks = policy
    draws = [engine.draw(prompts, first)]
    while more is not None and len(draws) <= settings.refill and (missing := len(prompts) - kept_groups(draws)):
        draws.append(engine.draw(more(missing), first + len(draws) * settings.stride))
    whole = used = draws[0]
    if budget is not None and isinstance(engine, LocalEngine):
        draw, behind = engine.draw, first + settings.group
        whole, joined = topped_up(whole, budget, prompts, lambda p, more: draw(p, behind, more), advantage)
        used, looks = whole, JoinedPolicy(policy) if joined else policy
    if settings.refill:
        whole = whole_draw(draws, advantage)
        if kept_groups(draws):
            looks, used = JoinedPolicy(policy), kept_draw(draws, advantage)
    rollout, adv, metrics = used.rollout, used.adv, whole.metrics
    if critic is not None:
        values = critic.looks if looks is policy else JoinedPolicy(critic.looks)
        with clock.phase("train"):
            metrics |= _fit(critic, values, rollout, settings, progress)
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
        metrics |= update(looks, learner, rollout, adv, objective, settings, progress, reward_of, added)
    metrics |= {f"time_{name}": seconds for name, seconds in clock.seconds.items()}
    return Iteration(metrics, whole.rollout.samples, whole.rewards)


def _fit(critic: Critic, looks: Looks, rollout: Rollout, settings: Settings, progress: Progress | None) -> Metrics:
    """Fits the critic to a rollout's returns; its metrics are named value/*."""
    metrics, fitted = value_metrics(rollout), replace(rollout, mask=fitted_decisions(rollout))
    own = replace(settings, epochs=critic.epochs, updates=critic.updates, drop_silent=False, update_by="prompts")
    none = torch.zeros(len(rollout.rollout_logp))
    found = update(looks, critic.learner, fitted, none, critic.objective, own, progress)
    kept = ("loss", "error", "clip_frac", "grad_norm", "lr", "nonfinite_updates")
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


def update(
    policy: Looks,
    learner: Learner,
    rollout: Rollout,
    adv: Tensor,
    objective: Objective,
    settings: Settings,
    progress: Progress | None = None,
    reward_of: RewardOf | None = None,
    terms: Sequence[Term] = (),
) -> Metrics:
    """All optimizer steps of one rollout, with advantages [R] or [R, K]; returns their metrics, averaged over steps.

    terms: see terms.py.
    """
    adv = adv.cpu()
    every = bool(objective.needs & {"reference", "pull", "reward_of", "every_row"})  # trained rows all have a loss then
    friends = companions(rollout, adv, objective.together, settings.pairs, every="every_row" in objective.needs)
    if friends is not None:
        rollout = replace(rollout, mask=rollout.mask & friends.used[:, None])
    rollout, told = weighed(policy, rollout, adv, objective, settings.micro_batch, progress)
    trained = rollout.mask.any(1)
    if "reference" in objective.needs and objective.view.states == "drawn":
        for part in parts(trained.nonzero()[:, 0], settings.micro_batch):
            fill_reference(policy, rollout, part, objective.view, progress)
    for term in terms:
        term.fill(settings.micro_batch, progress)
    steps = []
    for block in _blocks(rollout, settings):
        weighted = with_step_weights(adv, objective, rollout, block)
        # a row that nothing moves has no policy gradient: it is looked at only where its loss has more than that
        active = trained if every else moved_rows(weighted, rollout.mask)
        used = block[active[block]] if friends is None else friends.rows(block)
        if "rank" in objective.needs:
            weighted = rank_shares(weighted, used)
        steps.append((block, used, weighted))
    step_metrics: list[Metrics] = []
    together = None if friends is None else friends.labels
    for _ in range(settings.epochs):
        for number, (block, used, weighted) in enumerate(steps):
            beside = [(t, rows) for t in terms if len(rows := t.rows_of(number, len(steps), block))]
            if len(used) or beside:
                loss = _step_loss(rollout, weighted, objective, block, used, learner, together, reward_of)
                loss.weights *= settings.coef
                if len(used):
                    _backward(policy, used, loss, settings.micro_batch, progress)
                of_terms: Metrics = {}
                for term, rows in beside:
                    term_loss = term.loss(rows)
                    _backward(term.looks, rows, term_loss, settings.micro_batch, progress)
                    of_terms |= term.metrics(term_loss)
                step_metrics.append(_step(learner, loss) | of_terms)
    first: Metrics = step_metrics[0] if step_metrics else {}
    by_name = {name: [m[name] for m in step_metrics if name in m] for m in step_metrics for name in m}
    means = {name: max(v) if name.endswith("_max") else sum(v) / len(v) for name, v in by_name.items()}
    stale = rollout.old_logp is not None or ("age" in rollout.step_stats and bool(rollout.step_stats["age"].any()))
    if "abs_log_ratio_max" in first and not stale:  # the policy still was the one that sampled: this is numerics alone
        means["replay_gap_max"] = first["abs_log_ratio_max"]
    active_rows = sum(len(used) for _, used, _ in steps) / len(rollout.rollout_logp)
    empty = settings.epochs * settings.updates - len(step_metrics)
    return told | means | {"active_rows": active_rows, "empty_updates": empty, "lr": learner.lr}


def _blocks(rollout: Rollout, settings: Settings) -> Sequence[Tensor]:
    """The rows of each optimizer step."""
    rows = torch.arange(len(rollout.rollout_logp))
    if settings.drop_silent and settings.update_by == "prompts":
        return rows[rollout.mask.any(1)].tensor_split(settings.updates)
    if settings.update_by == "prompts":
        group = rollout.samples.group
        labels, sizes = group.unique(return_counts=True)
        if rollout.credit is None and (sizes != sizes[0]).any():  # whole groups, which do not lie in one piece
            return [rows[torch.isin(group, part)] for part in labels.tensor_split(settings.updates)]
        return rows.split(-(-len(rows) // settings.updates))
    first = rollout.mask.int().argmax(1)
    steps = first.unique()
    return [rows[torch.isin(first, part)] for part in steps.split(-(-len(steps) // settings.updates))]


def _step_loss(
    rollout: Rollout,
    adv: Tensor,
    objective: Objective,
    block: Tensor,
    used: Tensor,
    learner: Learner,
    together: Tensor | None,
    reward_of: RewardOf | None,
) -> StepLoss:
    """The loss of the rows `block`, of which `used` have anything to say; adv: with step weights."""
    loss_weights = torch.zeros_like(rollout.rollout_logp)
    loss_weights[block] = objective.weights(rollout.mask[block]).to(loss_weights)
    share = torch.zeros_like(rollout.rollout_logp)
    share[used] = weights(rollout.mask[used]).to(share)
    return StepLoss(rollout, adv, objective, loss_weights, share, together, learner.unmoved, reward_of)


def _backward(policy: Looks, rows: Tensor, loss: StepLoss, micro_batch: int | None, progress: Progress | None) -> None:
    """Adds the gradient of the loss of these rows, micro_batch of them at once."""
    states = loss.objective.view.states
    if states == "noised":
        backward_noised(policy, rows, loss, micro_batch, progress)
        return
    if loss.objective.together == "pair" and micro_batch is not None:
        micro_batch = max(2, micro_batch - micro_batch % 2)  # rows lie pair by pair, which a part does not cut
    for part in parts(rows, micro_batch):
        (backward if states in ("drawn", "valued") else backward_pull)(policy, part, loss, progress)


def _step(learner: Learner, loss: StepLoss) -> Metrics:
    """One optimizer step on the gradient that a loss has left, and its metrics."""
    lr = learner.lr
    norm = learner.step()
    finite = torch.isfinite(norm)
    metrics = {name: float(value) for name, value in loss.total.items()}
    return metrics | {"grad_norm": float(norm), "lr": lr, "nonfinite_updates": float(~finite)}
