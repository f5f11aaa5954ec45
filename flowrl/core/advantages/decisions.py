"""Advantages of single decisions: what is left of an outcome is given to the decisions of its row."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.contracts import Rollout
from flowrl.core.advantages import returns
from flowrl.core.advantages.normalise import float64, whiten
from flowrl.core.objectives.divergence import penalty


@dataclass(frozen=True)
class KlReward:
    """A divergence that is paid as a reward of each decision: coefficient and estimator (objectives/divergence.py)."""

    coefficient: float
    kind: str = "k1"

    def of(self, rollout: Rollout) -> Tensor:
        """What each decision pays, float64 [R, K], not yet times the coefficient, 0 where masked.

        Raises ValueError for a rollout without log-probs of the reference.
        """
        if rollout.reference is None:
            raise ValueError("a divergence in the reward needs log-probs of the reference")
        logp, reference = rollout.rollout_logp.double(), rollout.reference.double()
        return penalty(self.kind, logp, reference, mask=rollout.mask)


@dataclass(frozen=True)
class DecisionCredit:
    """How rewards reach decisions; kind is one of returns.CREDITS but broadcast, whose functions say what each does.

    step is the sum of those from a decision on, as reward_to_go without a discount (see process.py).

    gamma discounts decisions, turn_gamma turns (two_level). lam, lam_critic: of gae, for the advantages and for what
    the critic is fitted to (None: the same); alpha: in place of lam, 1 - 1 / (alpha l) of a row of l decisions. holes:
    skip or restart, of reward_to_go. whitened: the advantages of all decisions get mean 0 and variance 1 at last.
    flow: of logarithms of rewards and flows (returns.flow), lam of what the critic is fitted to; `kl` says which
    log-probs count, those of the policy if None.
    """

    kind: str
    gamma: float = 1.0
    lam: float = 1.0
    lam_critic: float | None = None
    alpha: float | None = None
    turn_gamma: float = 0.95
    holes: str = "skip"
    whitened: bool = False

    def __call__(
        self,
        outcome: Tensor,
        rollout: Rollout,
        *,
        placed: Tensor | None = None,
        unscored: Tensor | None = None,
        kl: KlReward | None = None,
    ) -> Tensor:
        """Advantages float32 [R, K] from outcomes [R], which sit at the last decisions; fills in `rollout.returns`.

        placed [R, K]: further rewards, which sit at decisions. unscored bool [R]: rows whose outcome is not known; they
        get 0, and no critic is fitted to them. kl: paid at every decision. Raises ValueError where the kind needs what
        the rollout lacks.
        """
        mask = rollout.mask.cpu()
        rewards = returns.at_last(outcome, mask)
        if placed is not None:
            rewards = rewards + float64(placed)
        if kl is not None and self.kind != "flow":
            rewards = rewards - kl.coefficient * kl.of(rollout).cpu()
        known = mask if unscored is None else mask & ~unscored.cpu()[:, None]
        adv, targets = self._estimate(rewards, rollout, mask, kl)
        adv = whiten(adv, known) if self.whitened else adv.where(known, 0.0)
        rollout.returns = targets.masked_fill(mask & ~known, torch.nan).float()
        return adv.float()

    def _estimate(self, rewards: Tensor, rollout: Rollout, mask: Tensor, kl: KlReward | None) -> returns.Estimate:
        if self.kind == "flow":
            logp = rollout.rollout_logp if kl is None else kl.of(rollout)
            return returns.flow(rewards, mask, self._values(rollout), logp, self.lam)
        if self.kind == "two_level":
            turn = rollout.step_stats.get("turn", torch.zeros(mask.shape))
            options = {"gamma": self.gamma, "lam": self.lam, "turn_gamma": self.turn_gamma}
            return returns.two_level(rewards, mask, self._values(rollout), returns.turn_ends(turn, mask), **options)
        if self.kind == "gae":
            lam = self.lam if self.alpha is None else returns.lambda_by_length(mask, self.alpha)
            options = {"gamma": self.gamma, "lam": lam, "lam_critic": self.lam_critic}
            return returns.gae(rewards, mask, self._values(rollout), **options)
        to_go = returns.reward_to_go(rewards, mask, gamma=self.gamma, restart=self.holes == "restart")
        if self.kind in ("reward_to_go", "step"):
            return returns.Estimate(to_go, to_go)
        if self.kind == "optimal_token":
            if "squares" not in rollout.step_stats:
                raise ValueError(
                    "credit 'optimal_token' reads the statistic `squares` of each decision: only tokens have it"
                )
            given = rollout.samples.group, rollout.rollout_logp, rollout.step_stats["squares"]
            return returns.Estimate(returns.optimal_token(to_go, mask, *given), to_go)
        raise ValueError(f"credit {self.kind!r}: choose one of {', '.join(returns.CREDITS)}")

    def _values(self, rollout: Rollout) -> Tensor:
        if rollout.value is None:
            raise ValueError(f"credit {self.kind!r} reads the values of a critic: set critic")
        return rollout.value


def kl_as_reward(kl: KlReward, rollout: Rollout) -> tuple[Tensor, float]:
    """(sum of a row's divergences float32 [R], its weight < 0): as a reward of whole rows (RLOO, arXiv:2402.14740)."""
    return float64(kl.of(rollout)).sum(1).float(), -kl.coefficient
