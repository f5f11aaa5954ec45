"""Gates: how the loss of a decision follows from its ratio and its advantage, beside the clip of clipped.py.

With d = logp - rollout_logp, the ratio r of the level (see `clipped.clipped_loss`), the advantage A, and sg for what
has no gradient:

    pg                  -A logp                                              REINFORCE, GPG (arXiv:2504.02546), OPMD
    ratio               -A r                                                 without any clip
    is_clip             -sg(clip(r, 1 - low, 1 + high)) A logp               CISPO (arXiv:2506.13585, eq. 4)
    sigmoid             -A 4 / tau sigmoid(tau (r - 1))                      SAPO (arXiv:2511.20347)
    gamma               -sg(exp(lambda + k log r - lambda r)) A logp         VESPO (arXiv:2602.10693)
    log_clip_then_mean  -A exp(mean over the row of d, limited on one side)  GMPO (arXiv:2507.20673)
    inverse             A > 0: -sg(min(1 / r, dual)) A logp up to 1 + high   ASPO (arXiv:2510.06062)
                        A < 0: as the clip with its dual limit

tau, k and lambda are those of the sign of A. A loss with logp in it is made for its gradient; its value says nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.core.objectives.clipped import clip_metrics, clipped_loss, difference, exponent_of

GATES = ("ppo", "pg", "ratio", "is_clip", "sigmoid", "gamma", "log_clip_then_mean", "inverse")
FAR = 20.0  # a log-ratio at which a sigmoid is flat, long before its exponential is infinite


@dataclass(frozen=True)
class Gate:
    """A gate by its name and its numbers. clip_low, clip_high, dual, level, log_ratio_limit: see `clipped_loss`."""

    kind: str
    clip_low: float
    clip_high: float
    dual: float | None = None
    level: str = "token"
    log_ratio_limit: float | None = None
    tau_pos: float = 1.0
    tau_neg: float = 1.05
    k_pos: float = 2.0
    lambda_pos: float = 3.0
    k_neg: float = 3.0
    lambda_neg: float = 2.0

    def __post_init__(self) -> None:
        if self.kind not in GATES[1:]:
            raise ValueError(f"gate {self.kind!r}: choose one of {', '.join(GATES)}")

    def loss(
        self, logp: Tensor, rollout_logp: Tensor, adv: Tensor, mask: Tensor, log_ratio: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss [r, k] of each decision, 0 where masked, and the metrics of `clipped_loss`.

        logp, rollout_logp [r, k]; adv [r] or [r, k]; mask bool [r, k]; log_ratio [r, k] takes the place of d in the
        ratio. clip_frac: decisions whose weight or exponent is limited.
        """
        valid = mask.bool()
        d = difference(logp, rollout_logp.detach(), valid)
        own = d if log_ratio is None else log_ratio.to(d.dtype).where(valid, 0.0)
        exponent = exponent_of(own, valid, "token" if self.kind == "log_clip_then_mean" else self.level)
        if self.log_ratio_limit is not None:
            exponent = exponent.clamp(-self.log_ratio_limit, self.log_ratio_limit)
        a = (adv[:, None] if adv.ndim == 1 else adv).detach().to(d.dtype).expand_as(d).where(valid, 0.0)
        score = logp.to(d.dtype).where(valid, 0.0) if log_ratio is None else own
        excess = torch.expm1(exponent.detach())
        outside = (excess > self.clip_high) | (excess < -self.clip_low)
        limited = torch.zeros_like(valid)
        if self.kind == "pg":
            loss = -a * score
        elif self.kind == "ratio":
            loss = -a * exponent.where(a != 0, 0.0).exp()
        elif self.kind == "is_clip":
            limited = outside
            loss = -(1 + excess.clamp(-self.clip_low, self.clip_high)) * a * score
        elif self.kind == "sigmoid":
            tau = torch.where(a > 0, self.tau_pos, self.tau_neg)
            loss = -a * 4 / tau * torch.sigmoid(tau * torch.expm1(exponent.clamp(max=FAR)))
        elif self.kind == "gamma":
            loss = -self._phi(exponent.detach(), a) * a * score
        elif self.kind == "inverse":
            loss, limited = self._inverse(logp, rollout_logp, a, exponent, valid, log_ratio, score)
        else:
            loss, limited = self._geometric(own, a, valid)
            outside = limited
        capped = torch.zeros_like(valid)
        return loss.where(valid, 0.0), clip_metrics(d.detach(), exponent.detach(), limited, capped, outside, valid)

    def _phi(self, log_ratio: Tensor, adv: Tensor) -> Tensor:
        k = torch.where(adv >= 0, self.k_pos, self.k_neg)
        rate = torch.where(adv >= 0, self.lambda_pos, self.lambda_neg)
        return (rate + k * log_ratio - rate * log_ratio.exp()).exp()

    def _geometric(self, d: Tensor, adv: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """By the mean of the limited log-ratios of a row, with gradient, and the mean of its decisions' advantages."""
        number = valid.sum(1, keepdim=True).clamp(min=1)
        limited = ((adv > 0) & (d.detach() > self.clip_high)) | ((adv < 0) & (d.detach() < -self.clip_low))
        kept = torch.where(adv > 0, d.clamp(max=self.clip_high), torch.where(adv < 0, d.clamp(min=-self.clip_low), d))
        ratio = (kept.where(valid, 0.0).sum(1, keepdim=True) / number).exp()
        return (-(adv.sum(1, keepdim=True) / number) * ratio).expand_as(d), limited

    def _inverse(
        self,
        logp: Tensor,
        rollout_logp: Tensor,
        adv: Tensor,
        exponent: Tensor,
        valid: Tensor,
        log_ratio: Tensor | None,
        score: Tensor,
    ) -> tuple[Tensor, Tensor]:
        below, metrics = clipped_loss(
            logp,
            rollout_logp,
            adv.clamp(max=0.0),
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            dual=self.dual,
            level=self.level,
            mask=valid,
            log_ratio_limit=self.log_ratio_limit,
            log_ratio=log_ratio,
        )
        beyond = (adv > 0) & (torch.expm1(exponent.detach()) > self.clip_high)
        weight = (-exponent.detach()).exp()
        weight = weight if self.dual is None else weight.clamp(max=self.dual)
        above = torch.where(beyond, 0.0, -weight * adv * score)
        return torch.where(adv > 0, above, below), beyond | metrics["clip_frac"].bool()
