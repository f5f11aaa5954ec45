"""Credit of single decisions: from rewards of decisions to advantages and returns of each. Pure functions on [R, K].

rewards float [R, K]: what each decision brought, 0 where nothing; an outcome sits at the row's last decision. mask bool
[R, K]: the decisions of the model. What it did not say may stand between them (a tool's answer): such holes are passed
over, as if the row were written without them. A return is never reset there, which would cut what comes after a turn
off from the turn (verl issue 7278). All is float64 on the CPU, 0 where masked, before any whitening.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from flowrl.core.advantages.normalise import float64

CREDITS = ("broadcast", "reward_to_go", "gae", "two_level", "optimal_token", "step", "flow")


class Estimate(NamedTuple):
    """Advantages and returns of decisions, float64 [R, K] each; returns are what a critic is fitted to."""

    adv: Tensor
    returns: Tensor


def at_last(outcome: Tensor, mask: Tensor) -> Tensor:
    """Rewards [R, K] with the outcome [R] at the last decision of each row's mask [R, K]; none in a row without any."""
    valid = mask.cpu().bool()
    last = valid.shape[1] - 1 - valid.int().flip(1).argmax(1)
    placed = torch.zeros(valid.shape, dtype=torch.float64)
    placed[torch.arange(len(valid)), last] = float64(outcome)
    return placed.where(valid, 0.0)


def reward_to_go(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0, restart: bool = False) -> Tensor:
    """Returns sum_{j >= t} gamma^(j - t) r_j, where j counts the row's own decisions: float64 [R, K].

    restart: sums begin anew at holes, and gamma counts columns, as verl computed REINFORCE++ (arXiv:2501.03262).
    """
    r, valid = float64(rewards), mask.cpu().bool()
    total, found = torch.zeros(len(r), dtype=torch.float64), torch.zeros_like(r)
    for t in reversed(range(r.shape[1])):
        now = r[:, t] + gamma * total
        found[:, t] = now
        total = now.where(valid[:, t], 0.0 if restart else total)
    return found.where(valid, 0.0)


def gae(
    rewards: Tensor,
    mask: Tensor,
    values: Tensor,
    *,
    gamma: float = 1.0,
    lam: float | Tensor = 1.0,
    lam_critic: float | None = None,
) -> Estimate:
    """Generalised advantage estimation (arXiv:1506.02438, eq. 16) with values [R, K] before each decision.

    adv_t = sum_{j >= t} (gamma lam)^(j - t) (r_j + gamma V_{j+1} - V_j), V = 0 behind the last; returns = adv + V.
    lam: one number, or one a row [R]. lam_critic: another for the returns (VC-PPO, arXiv:2503.01491, section 3.3).
    """
    r, valid, v = float64(rewards), mask.cpu().bool(), float64(values)
    adv = _gae(r, valid, v, gamma, lam)
    of_critic = adv if lam_critic is None else _gae(r, valid, v, gamma, lam_critic)
    return Estimate(adv, (of_critic + v).where(valid, 0.0))


def _gae(r: Tensor, valid: Tensor, v: Tensor, gamma: float, lam: float | Tensor) -> Tensor:
    trace, following = torch.zeros(len(r), dtype=torch.float64), torch.zeros(len(r), dtype=torch.float64)
    adv, decay = torch.zeros_like(r), gamma * lam
    for t in reversed(range(r.shape[1])):
        now = r[:, t] + gamma * following - v[:, t] + decay * trace
        trace, following = now.where(valid[:, t], trace), v[:, t].where(valid[:, t], following)
        adv[:, t] = trace
    return adv.where(valid, 0.0)


def flow(rewards: Tensor, mask: Tensor, values: Tensor, logp: Tensor, lam: float = 1.0) -> Estimate:
    """How log-flows grow by each decision, log F_{t+1} - log F_t, and what log F_t is where all behind is balanced.

    values, logp [R, K]: log F before each decision, and of the decision; rewards: log R at the last one, in the place
    of a log F behind it. The returns are those of gae with rewards less log p and this lam: with 1, log R less all log
    p from t on; with 0, log F_{t+1} - log p_t, the balance of single steps (arXiv:2111.09266).
    """
    taken = float64(rewards) - float64(logp).where(mask.cpu().bool(), 0.0)
    return Estimate(gae(rewards, mask, values, lam=0.0).adv, gae(taken, mask, values, lam=lam).returns)


def lambda_by_length(mask: Tensor, alpha: float) -> Tensor:
    """max(0, 1 - 1 / (alpha l)) of rows with l decisions, float64 [R]: VAPO (arXiv:2504.05118, eq. 8)."""
    length = mask.cpu().bool().sum(1).clamp(min=1).double()
    return (1 - 1 / (alpha * length)).clamp(min=0)


def turn_ends(turn: Tensor, mask: Tensor) -> Tensor:
    """The last decision of each turn, bool [R, K]; turn [R, K]: its number, which rises."""
    valid, ends = mask.cpu().bool(), torch.zeros(mask.shape, dtype=torch.bool)
    following = torch.full((len(turn),), torch.nan, dtype=torch.float64)
    number = float64(turn)
    for t in reversed(range(turn.shape[1])):
        ends[:, t] = valid[:, t] & (number[:, t] != following)
        following = number[:, t].where(valid[:, t], following)
    return ends


def two_level(
    rewards: Tensor,
    mask: Tensor,
    values: Tensor,
    ends: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    turn_gamma: float = 0.95,
) -> Estimate:
    """Bi-level GAE: over the ends of turns first, then inside each turn (RAGEN, arXiv:2504.20073, its code).

    ends bool [R, K]: the last decision of each turn. Among the ends of a row GAE with turn_gamma and lam gives a return
    of each turn, which takes the place of the reward there; then GAE with gamma and lam inside each turn, whose last
    decision has nothing behind it.
    """
    r, valid, v = float64(rewards), mask.cpu().bool(), float64(values)
    last = ends.cpu().bool() & valid
    of_turns = _gae(r, last, v, turn_gamma, lam) + v
    reward = torch.where(last, of_turns, r)
    trace, following = torch.zeros(len(r), dtype=torch.float64), torch.zeros(len(r), dtype=torch.float64)
    adv = torch.zeros_like(r)
    for t in reversed(range(r.shape[1])):
        after, behind = following.where(~last[:, t], 0.0), trace.where(~last[:, t], 0.0)
        now = reward[:, t] + gamma * after - v[:, t] + gamma * lam * behind
        trace, following = now.where(valid[:, t], trace), v[:, t].where(valid[:, t], following)
        adv[:, t] = trace
    adv = adv.where(valid, 0.0)
    return Estimate(adv, (adv + v).where(valid, 0.0))


def optimal_token(
    returns: Tensor,
    mask: Tensor,
    group: Tensor,
    logp: Tensor,
    squares: Tensor,
    *,
    weights: Tensor | None = None,
    zero_tail: bool = True,
    by_column: bool = False,
    eps: float = 1e-8,
) -> Tensor:
    """Returns [R, K] less the baseline of least variance of each position, float64 [R, K].

    Rows of a group int64 [R] are compared at equal positions, counted over their own decisions (by_column: columns):
    b_t = sum_i G_it W_it / (sum_i W_it + eps), W_it = sum_{j <= t} (1 - 2 p_ij + s_ij) (w_ij^2), with p = exp(logp),
    s = squares [R, K], the sum over the vocabulary of squared probabilities, and w = weights [R, K], correction weights
    where there are any: the expected squared norm of the score up to t. zero_tail: no baseline where a single row
    remains. A row that is alone in its group has none. Source: optimal token baseline (verl).
    """
    g, valid = float64(returns), mask.cpu().bool()
    order = torch.argsort((~valid).int(), dim=1, stable=True)  # each row's own decisions first
    inside = torch.arange(g.shape[1]) < valid.sum(1, keepdim=True)
    if by_column:
        order, inside = torch.arange(g.shape[1]).expand_as(order), valid
    energy = 1 - 2 * float64(logp).exp() + float64(squares)
    energy = energy if weights is None else energy * float64(weights).square()
    total = energy.gather(1, order).where(inside, 0.0).cumsum(1).where(inside, 0.0)
    compact = g.gather(1, order).where(inside, 0.0)
    base = torch.zeros_like(g)
    for label in group.cpu().unique():
        rows = (group.cpu() == label).nonzero()[:, 0]
        if len(rows) < 2:
            continue
        b = (compact[rows] * total[rows]).sum(0) / (total[rows].sum(0) + eps)
        if zero_tail:
            b = b.where(inside[rows].sum(0) > 1, 0.0)
        base[rows] = b
    spread = torch.zeros_like(g).scatter(1, order, base.where(inside, 0.0))
    return (g - spread).where(valid, 0.0)


def value_differences(rewards: Tensor, values: Tensor) -> Tensor:
    """Advantages r_s + V_{s+1} - V_s of the steps s of one row, float64 [S]: VinePPO (arXiv:2410.01679, eq. 6).

    rewards [S]; values [S + 1]: Monte-Carlo values before each step, that of the end taken as 0. Trailing NaN stand for
    steps that were not valued: they and the value before them are filled with reward-to-go.
    """
    r, v = float64(rewards), float64(values).clone()
    v[-1] = 0.0
    for s in reversed(range(len(r))):
        if not v[s].isnan():
            break
        v[s] = r[s] + v[s + 1]
    return r + v[1:] - v[:-1]


def prefix_average(
    outcome: Tensor, paths: list[list[str]], *, by_size: bool = False, skip_tied: bool = False
) -> Tensor:
    """Outcomes [R] less the mean over leaves that share a prefix, averaged over the depths of a tree: float64 [R].

    paths: of each row, the names from the root to its leaf, the leaf itself last. by_size: depths count by how many
    leaves share the prefix. Below the root, prefixes of one leaf count at no depth, and with skip_tied those whose
    leaves are equal neither. Source: TreePO (arXiv:2508.17445, eq. 5).
    """
    x = float64(outcome)
    total, size = torch.zeros_like(x), torch.zeros_like(x)
    for depth in range(max(map(len, paths)) - 1):
        shared: dict[tuple[str, ...], list[int]] = {}
        for row, path in enumerate(paths):
            if depth < len(path) - 1:
                shared.setdefault(tuple(path[: depth + 1]), []).append(row)
        for rows in shared.values():
            if depth and (len(rows) < 2 or (skip_tied and x[rows].std() == 0)):
                continue
            weight = float(len(rows)) if by_size else 1.0
            total[rows] += weight * (x[rows] - x[rows].mean())
            size[rows] += weight
    return total / size.clamp(min=1)
