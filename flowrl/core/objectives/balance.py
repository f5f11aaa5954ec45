"""The balance of flows: completions of a prompt are to be as likely as their rewards say, not the best one alone.

A generative flow network draws x with probability R(x) / Z. Where one way leads to each x, as tokens lead to a text, a
trajectory is balanced where log Z + log p(x) = log R(x) (trajectory balance, arXiv:2201.13259). Its variance form needs
no learned Z: of several x, log Z is the mean of log R(x) - log p(x) (arXiv:2302.05446).

A state s, the tokens so far, has a flow F(s) of its own, what reaches R by it. Each step is balanced where log F(s) +
log p(token | s) = log F(s') (detailed balance, arXiv:2111.09266), with R for the flow of a whole text; so is then every
stretch of a text (sub-trajectory balance, arXiv:2209.12782). Here a critic gives log F (credit `flow`).
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from flowrl.contracts import Batch, LogProbs, Need, Rollout, Together, View
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.matching import group_sum
from flowrl.core.objectives.terms import row_log_ratio


def trajectory_variance(logp: Tensor, log_reward: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """((delta - mean of the group's delta)^2, -that mean) of each row, [r] each, with delta = logp - log_reward.

    logp [r]: of whole rows, with gradient; log_reward [r]; group int64 [r]. The second is the estimate of log Z. The
    gradient of a row's loss, summed over its group, is 2 (delta - mean) times that of its logp: that of REINFORCE with
    the advantage -2 (delta - mean). Source: Var-TB of GFlowVLM (arXiv:2503.06514).
    """
    delta = logp - log_reward
    mean = group_sum(delta, group) / group_sum(torch.ones_like(delta), group)
    return (delta - mean).square(), -mean.detach()


@dataclass(frozen=True)
class TrajectoryBalance:
    """Var-TB of GFlowVLM (arXiv:2503.06514): see `trajectory_variance`, a mean over rows.

    A row's `adv` is its reward r as it is; NaN: it could not be scored, and takes no part. mapping: what flows are in
    proportion to, R = max(r, floor) (plain), or R = exp(r) for rewards of any sign (exp). temperature: log R is divided
    by it, so that R^(1 / temperature) is learned. prior: none, or the reference, whose probability of the text then
    multiplies R, as in TBA (arXiv:2503.18929); without it nothing holds texts of reward 0 back but the floor. All
    tokens that the model drew count, those of a thought as those of an action (the lambda of the paper is 1).
    """

    mapping: Literal["plain", "exp"] = "plain"
    floor: Annotated[float, "> 0"] = 1e-4
    temperature: Annotated[float, "> 0"] = 1.0
    prior: Literal["none", "reference"] = "none"

    view = View()
    together: Together = "group"

    @property
    def needs(self) -> frozenset[Need]:
        """Every row, as one whose reward is 0 has a loss too."""
        needs: list[Need] = ["every_row"] if self.prior == "none" else ["every_row", "reference"]
        return frozenset(needs)

    def weights(self, mask: Tensor) -> Tensor:
        """The mean over rows of their means, so that what stands at all decisions of a row counts once."""
        return weights(mask, "seq_mean_mean")

    def weigh(self, rollout: Rollout, adv: Tensor) -> tuple[Rollout, dict[str, Tensor]]:
        """Without the rows that could not be scored."""
        scored = ~adv.isnan().to(rollout.mask.device)
        return replace(rollout, mask=rollout.mask & scored[:, None]), {}

    def step_weights(self, mask: Tensor, step_stats: dict[str, Tensor]) -> None:
        """None; see `contracts.Objective`."""

    def log_reward(self, reward: Tensor) -> Tensor:
        """log R / temperature of rewards [r]."""
        log = reward if self.mapping == "exp" else reward.clamp(min=self.floor).log()
        return log / self.temperature

    def __call__(self, seen: LogProbs, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `contracts.Objective`. Metrics: log_z, and imbalance, the distance of a row from it, in nats.

        Raises ValueError where nothing says which rows are compared, or the reference is missing.
        """
        if batch.together is None or (self.prior == "reference" and batch.reference is None):
            raise ValueError("the objective is of groups of rows, and with a prior of their reference")
        prior = torch.zeros_like(seen.logp) if batch.reference is None else batch.reference
        there = batch.mask.any(1)
        rows = row_log_ratio(seen.logp, prior, batch.mask)
        loss, log_z = trajectory_variance(
            rows[there], self.log_reward(batch.adv[there]).to(rows), batch.together[there]
        )
        spread = torch.zeros_like(rows).masked_scatter(there, loss)
        told = {"log_z": log_z, "imbalance": loss.detach().sqrt()}
        wide = {n: torch.zeros_like(rows).masked_scatter(there, v) for n, v in told.items()}
        return spread[:, None] * batch.mask, {n: v[:, None] * batch.mask for n, v in wide.items()}


def stretch_imbalance(steps: Tensor, mask: Tensor, lam: float) -> Tensor:
    """The mean over the stretches of each row of the square of what its steps add up to, [r].

    steps [r, k]: how far each step is from balance, log p - (log F(s') - log F(s)); mask bool [r, k]: a row's steps,
    what lies between them is passed over. A stretch of n steps weighs lam^n; lam 0: single steps alone, which is
    detailed balance. 0 in rows without steps. Source: SubTB(lambda) (arXiv:2209.12782, eq. 11).
    """
    order = (~mask).int().argsort(dim=1, stable=True)
    own, step = mask.gather(1, order), steps.where(mask, 0.0).gather(1, order)
    if lam == 0:
        return step.square().sum(1) / own.sum(1).clamp(min=1)
    # where a row stands at each of its states, from the state before its first step on
    state = torch.nn.functional.pad(own, (1, 0), value=True).to(step)
    at = torch.nn.functional.pad(step.cumsum(1), (1, 0)) * state
    at = (at - at.detach().sum(1, keepdim=True) / state.sum(1, keepdim=True)) * state
    number = torch.arange(at.shape[1], device=at.device)
    weight = (lam ** (number[:, None] - number).abs().to(at)).fill_diagonal_(0)
    whole = ((state @ weight) * state).sum(1)  # every stretch twice
    total = 2 * (((state @ weight) * at.square()).sum(1) - ((at @ weight) * at).sum(1))
    return total / whole.clamp(min=torch.finfo(at.dtype).tiny)


@dataclass(frozen=True)
class SubTrajectoryBalance(TrajectoryBalance):
    """SubTB (arXiv:2209.12782), and with lam 0 detailed balance (arXiv:2111.09266): see `stretch_imbalance`, a mean
    over rows.

    The `adv` of a decision is how log F grows by it, as credit `flow` has it of a critic's log F and of the rewards
    (`log_reward`); NaN: of a row that could not be scored, which takes no part. Flows are learned apart: the gradient
    here is that of the log-probs. With a prior, log F is that of the ratio to it.
    GFlowVLM (arXiv:2503.06514) has both losses over turns whose rewards and chances of stopping stand for F; here F is
    learned, and a step is a token.
    """

    lam: Annotated[float, "[0, 1]"] = 1.0

    together: Together = "row"

    @property
    def needs(self) -> frozenset[Need]:
        """Every row; the reference is there before the flows are."""
        return frozenset({"every_row"})

    def weigh(self, rollout: Rollout, adv: Tensor) -> tuple[Rollout, dict[str, Tensor]]:
        """Without the rows that could not be scored."""
        return replace(rollout, mask=rollout.mask & ~adv.isnan().to(rollout.mask.device)), {}

    def __call__(self, seen: LogProbs, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `contracts.Objective`. Metrics: imbalance, the root of a row's loss, in nats.

        Raises ValueError where advantages are not those of decisions, or the reference is missing.
        """
        prior = torch.zeros_like(seen.logp) if self.prior == "none" else batch.reference
        if batch.adv.ndim != 2 or prior is None:
            raise ValueError("the objective reads how flows grow by each decision, and with a prior the reference")
        rows = stretch_imbalance(seen.logp - prior - batch.adv.to(seen.logp), batch.mask, self.lam)
        told = {"imbalance": rows.detach().sqrt()}
        return rows[:, None] * batch.mask, {n: v[:, None] * batch.mask for n, v in told.items()}
