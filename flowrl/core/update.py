"""All optimizer steps of one rollout: which rows each takes, its loss, backward, and a step of the learner.

How a loss becomes a gradient, also where it needs rows as a whole and the policy gives columns, is in backward.py.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowrl.contracts import ALONE, Looks, Objective, Progress, Ranks, RewardOf, Rollout
from flowrl.core.backward import StepLoss, backward, fill_reference, with_step_weights
from flowrl.core.backward_noised import backward_noised, chunks
from flowrl.core.backward_pull import backward_pull
from flowrl.core.engine import Metrics
from flowrl.core.filling import parts, weighed
from flowrl.core.learning.learner import Learner
from flowrl.core.learning.scaling import LEAST
from flowrl.core.learning.shrinking import MicroBatch
from flowrl.core.objectives.aggregate import weights
from flowrl.core.pairs import companions
from flowrl.core.ranks import balance, own_rows, whole_gradient, whole_metrics
from flowrl.core.selection import WidthPruning, moved_rows, rank_shares
from flowrl.core.terms import Term


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
    before there are advantages. most: of the groups that have an advantage, the first so many are trained (None: what
    was drawn). iteration: how many were done before. coef: of the objective, where terms stand beside it. shrinking:
    takes the place of micro_batch, and becomes smaller where memory runs out. saving: gives that within which
    losses are computed and differentiated.
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
    most: int | None = None
    iteration: int = 0
    coef: float = 1.0
    shrinking: MicroBatch | None = None
    saving: Callable[[], AbstractContextManager[None]] = nullcontext

    @property
    def at_once(self) -> int | None:
        """Rows at once, as they are now (None: all)."""
        return self.micro_batch if self.shrinking is None else self.shrinking.rows

    @property
    def stride(self) -> int:
        """How far the noise of two draws lies apart."""
        return self.group if self.members is None else self.members


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
    ranks: Ranks = ALONE,
) -> Metrics:
    """All optimizer steps of one rollout, with advantages [R] or [R, K]; returns their metrics, averaged over steps.

    terms: see terms.py; ranks: who takes the steps together.
    """
    adv = adv.cpu()
    every = bool(objective.needs & {"reference", "pull", "reward_of", "every_row"})  # trained rows all have a loss then
    friends = companions(rollout, adv, objective.together, settings.pairs, every="every_row" in objective.needs)
    if friends is not None:
        rollout = replace(rollout, mask=rollout.mask & friends.used[:, None])
    rollout, told = weighed(policy, rollout, adv, objective, settings.at_once, progress, ranks)
    trained = rollout.mask.any(1)
    if "reference" in objective.needs and objective.view.states == "drawn":
        for part in parts(own_rows(rollout, trained.nonzero()[:, 0], ranks), settings.at_once):
            fill_reference(policy, rollout, part, objective.view, progress)
    for term in terms:
        term.fill(settings.at_once, progress, ranks)
    steps = []
    for block in _blocks(rollout, settings):
        weighted = with_step_weights(adv, objective, rollout, block)
        # a row that nothing moves has no policy gradient: it is looked at only where its loss has more than that
        active = trained if every else moved_rows(weighted, rollout.mask)
        used = block[active[block]] if friends is None else friends.rows(block)
        if "rank" in objective.needs:
            weighted = rank_shares(weighted, used)
        steps.append((block, used, weighted))
    step_metrics, own_number = list[Metrics](), 0
    together = None if friends is None else friends.labels
    for _ in range(settings.epochs):
        for number, (block, used, weighted) in enumerate(steps):
            beside = [(t, rows) for t in terms if len(rows := t.rows_of(number, len(steps), block))]
            if len(used) or beside:

                def gradient(
                    micro: int | None,
                    block: Tensor = block,
                    used: Tensor = used,
                    weighted: Tensor = weighted,
                    beside: list[tuple[Term, Tensor]] = beside,
                ) -> tuple[StepLoss, list[StepLoss]]:
                    loss = _step_loss(rollout, weighted, objective, block, used, learner, together, reward_of)
                    loss.weights *= settings.coef
                    if len(mine := own_rows(rollout, used, ranks)):
                        with settings.saving():
                            _backward(policy, mine, loss, micro, progress)
                    of_terms = []
                    for term, rows in beside:
                        term_loss = term.loss(rows)
                        term_loss.scale = learner.loss_scale
                        if len(mine := term.own_rows(rows, ranks)):
                            with settings.saving():
                                _backward(term.looks, mine, term_loss, micro, progress)
                        of_terms.append(term_loss)
                    return loss, of_terms

                own_number += (mine := len(own_rows(rollout, used, ranks)))
                rows = max([mine, *(len(term.own_rows(rows, ranks)) for term, rows in beside)])
                loss, of_terms = _fitting(settings, gradient, rows, learner, ranks)
                told_of_terms: Metrics = {}
                for (term, _), term_loss in zip(beside, of_terms, strict=True):
                    term_loss.total = whole_metrics(term_loss.total, ranks)
                    told_of_terms |= term.metrics(term_loss)
                loss.total = whole_metrics(loss.total, ranks)
                whole_gradient(learner.parameters, ranks)
                step_metrics.append(_step(learner, loss) | told_of_terms)
    first: Metrics = step_metrics[0] if step_metrics else {}
    by_name = {name: [m[name] for m in step_metrics if name in m] for m in step_metrics for name in m}
    means = {name: max(v) if name.endswith("_max") else sum(v) / len(v) for name, v in by_name.items()}
    stale = rollout.old_logp is not None or ("age" in rollout.step_stats and bool(rollout.step_stats["age"].any()))
    if "abs_log_ratio_max" in first and not stale:  # the policy still was the one that sampled: this is numerics alone
        means["replay_gap_max"] = first["abs_log_ratio_max"]
    active_rows = sum(len(used) for _, used, _ in steps) / len(rollout.rollout_logp)
    empty = settings.epochs * settings.updates - len(step_metrics)
    told |= balance(own_number, ranks)
    told |= {} if settings.shrinking is None else {"micro_batch": settings.at_once or 0}
    return told | means | {"active_rows": active_rows, "empty_updates": empty, "lr": learner.lr}


def _fitting(
    settings: Settings,
    gradient: Callable[[int | None], tuple[StepLoss, list[StepLoss]]],
    rows: int,
    learner: Learner,
    ranks: Ranks,
) -> tuple[StepLoss, list[StepLoss]]:
    """The gradient of an update, begun anew with fewer rows at once where memory runs out and the settings allow it."""
    if settings.shrinking is None:
        return gradient(settings.micro_batch)

    def undo() -> None:
        for parameter in learner.parameters:
            parameter.grad = None

    return settings.shrinking(gradient, rows, undo, ranks)


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


def _by_role(rollout: Rollout, block: Tensor) -> Sequence[Tensor]:
    """The rows of a block, those of each role by themselves: the loss of each is a mean of its own."""
    if rollout.roles is None:
        return [block]
    own = rollout.roles[block]
    return [block[own == role] for role in own.unique()]


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
    for rows in _by_role(rollout, block):
        drawn = rows if rollout.counts is None else rows.repeat_interleave(rollout.counts[rows])
        loss_weights.index_add_(0, drawn, objective.weights(rollout.mask[drawn]).to(loss_weights))
    share = torch.zeros_like(rollout.rollout_logp)
    share[used] = weights(rollout.mask[used]).to(share)
    return StepLoss(
        rollout, adv, objective, loss_weights, share, together, learner.unmoved, reward_of, learner.loss_scale
    )


def _backward(policy: Looks, rows: Tensor, loss: StepLoss, micro_batch: int | None, progress: Progress | None) -> None:
    """Adds the gradient of the loss of these rows, micro_batch of them at once."""
    states = loss.objective.view.states
    if states == "noised":
        backward_noised(policy, rows, loss, micro_batch, progress)
        return
    if loss.objective.together == "pair" and micro_batch is not None:
        micro_batch = max(2, micro_batch - micro_batch % 2)  # rows lie pair by pair, which a part does not cut
    whole = loss.together if loss.objective.together == "group" else None
    for part in chunks(rows, whole, micro_batch):
        (backward if states in ("drawn", "valued") else backward_pull)(policy, part, loss, progress)


def _step(learner: Learner, loss: StepLoss) -> Metrics:
    """One optimizer step on the gradient that a loss has left, and its metrics."""
    lr, scale = learner.lr, learner.scale
    factor = learner.loss_scale
    norm = learner.step()
    lost = not bool(torch.isfinite(norm))
    metrics = {name: float(value) for name, value in loss.total.items()} | {"grad_norm": float(norm), "lr": lr}
    if scale is None:
        return metrics | {"nonfinite_updates": float(lost)}
    # an overflow that a smaller factor will mend is no alarm
    metrics |= {
        "loss_scale": factor,
        "skipped_updates": float(lost),
        "nonfinite_updates": float(lost and factor <= LEAST),
    }
    return {name: value for name, value in metrics.items() if not (lost and name == "grad_norm" and factor > LEAST)}
