"""The clipped objective with a divergence from the reference: GRPO and its relatives as one combination of parts."""

import math
from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal

from torch import Tensor

from flowrl.contracts import Batch, LogProbs, Need, Rollout, Together, View
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.clipped import clipped_loss, difference
from flowrl.core.objectives.correction import Correction
from flowrl.core.objectives.covariance import Covariance, covariance
from flowrl.core.objectives.divergence import GIVEN, penalty
from flowrl.core.objectives.gates import Gate
from flowrl.core.objectives.perception import Perception
from flowrl.core.objectives.step_weights import step_stat, step_weights, top_entropy

RATIOS = ("plain", "centred")
CORRECTION, CLIPPED, PULLED = "correction", "clip_cov", "kl_cov"  # step_stats that `weigh` adds


@dataclass(frozen=True)
class ClippedObjective:
    """Clipped policy gradient plus `kl` times a divergence from the reference policy, per decision.

    clip_low, clip_high, dual, level, log_ratio_limit: see `clipped_loss`.
    gate: what a decision's loss is of its ratio r and its advantage A (gates.py). ppo is -A r, clipped; ratio -A r; pg
    -A logp; is_clip the same times the clipped ratio, which has no gradient; sigmoid -A times a sigmoid of r; gamma -A
    logp times exp(lambda + k log r - lambda r); log_clip_then_mean -A times the geometric mean of a row's ratios, each
    limited by the clip in its logarithm; inverse where A > 0 -A logp / r, with 1 / r up to dual, else as ppo. The clip
    is read by ppo, is_clip, log_clip_then_mean and inverse, dual by ppo and inverse. tau_pos, tau_neg: temperatures of
    sigmoid where A is above and below 0. k_pos, k_neg: of gamma, likewise. lambda_pos, lambda_neg: of gamma, likewise.
    kl_kind: "exact" (of the decision's own distribution), "exact_dt", "forward" or "jsd" (`contracts.View`), or an
    estimate from log-probs, k1, k2, k3 or abs. aggregate: see `aggregate.weights`; its constant is rows * length, where
    length None is the number of decisions that a row has room for.

    weight: see `step_weights.step_weights`. entropy_share: only decisions whose entropy is in this top share of an
    update have a policy gradient, see `step_weights.top_entropy`; all others still pay the divergence and count in the
    mean. The next two are of Gaussian steps alone.
    ratio: "plain" is exp(logp - rollout_logp). Its logarithm has the negative mean -KL, which differs by step, as its
    spread does. "centred" is exp(centred * std) = exp(mean over elements of (mean - mean of the rollout) z): mean 0 and
    one scale for all steps, so that one clip range fits all.
    kl_mask: in place of the clip, the exact KL from the policy that sampled from which on a decision is left alone
    where it would move further away. It is read off centred - (logp - rollout_logp), to the rounding of log-probs.

    entropy: coefficient of each decision's entropy, which is added to what is sought. entropy_target, entropy_step: see
    `entropy.EntropyControl`, which the loop gives the coefficient by. off_policy_mask: where the mean over a row of
    rollout_logp - logp is above it, decisions with a negative advantage lose their policy gradient (DeepSeek-V3.2).
    kl_mix: of kl_kind jsd. correction: for another policy that sampled, see correction.py; the ratio is to old_logp.
    covariance: see covariance.py. perception: see perception.py.

    Sources: GRPO (arXiv:2402.03300, eq. 3), Flow-GRPO (arXiv:2505.05470, eq. 5), GSPO (arXiv:2507.18071, eq. 5),
    Dr. GRPO (arXiv:2503.20783), DAPO (arXiv:2503.14476), GRPO-Guard (arXiv:2510.22319), Flow-DPPO
    (verl-omni); those of the gates are in gates.py.
    """

    clip_low: float
    clip_high: float
    level: Literal["token", "seq_mean", "seq_sum", "seq_token"] = "token"
    dual: Annotated[float, "> 1"] | None = None
    log_ratio_limit: Annotated[float, "> 0"] | None = None
    kl: Annotated[float, ">= 0"] = 0.0
    kl_kind: Literal["exact", "exact_dt", "k1", "k2", "k3", "abs", "forward", "jsd"] = "exact"
    kl_mix: Annotated[float, "in (0, 1)"] = 0.5
    aggregate: Literal["decision_mean", "seq_mean_mean", "seq_mean_sum", "constant"] = "decision_mean"
    length: Annotated[int, ">= 1"] | None = None
    weight: Annotated[
        Literal["none", "noise", "inverse_dt", "inverse_entropy"] | tuple[float, ...],
        "none, noise, inverse_dt, inverse_entropy, or a list of numbers >= 0, one a trained step",
    ] = "none"
    ratio: Literal["plain", "centred"] = "plain"
    kl_mask: Annotated[float, "> 0"] | None = None
    entropy_share: Annotated[float | None, "a number > 0 and <= 1, or null"] = None
    gate: Literal["ppo", "pg", "ratio", "is_clip", "sigmoid", "gamma", "log_clip_then_mean", "inverse"] = "ppo"
    tau_pos: Annotated[float, "> 0"] = 1.0
    tau_neg: Annotated[float, "> 0"] = 1.05
    k_pos: Annotated[float, ">= 0"] = 2.0
    lambda_pos: Annotated[float, "> 0"] = 3.0
    k_neg: Annotated[float, ">= 0"] = 3.0
    lambda_neg: Annotated[float, "> 0"] = 2.0
    entropy: Annotated[float, ">= 0"] = 0.0
    entropy_target: Annotated[float, "> 0"] | None = None
    entropy_step: Annotated[float, "> 0"] = 0.005
    off_policy_mask: Annotated[float, "> 0"] | None = None
    correction: Correction | None = None
    covariance: Covariance | None = None
    perception: Perception | None = None

    def __post_init__(self) -> None:
        if self.ratio not in RATIOS:
            raise ValueError(f"ratio {self.ratio!r}: choose one of {', '.join(RATIOS)}")

    @property
    def view(self) -> View:
        """See `contracts.Objective`. centred: the means are compared with those of the rollout."""
        centred = self.ratio == "centred" or self.kl_mask is not None
        kind = self.kl_kind if self.kl_kind in ("forward", "jsd") else "exact"
        return View(
            exact_kl=self.kl > 0 and self.kl_kind in GIVEN,
            centred=centred,
            entropy=self.entropy > 0 or self.entropy_target is not None,
            kl_kind=kind,
            kl_mix=self.kl_mix,
        )

    @property
    def together(self) -> Together:
        """A row where a decision's ratio, or how far it is off the policy, is that of its row."""
        alone = self.level == "token" and self.gate != "log_clip_then_mean" and self.off_policy_mask is None
        return "decision" if alone else "row"

    @property
    def needs(self) -> frozenset[Need]:
        """The reference where a divergence is paid, every decision where entropy is, and what is corrected."""
        needs = frozenset[Need](["reference"] if self.kl > 0 else [])
        needs |= frozenset[Need](["every_row"] if self.entropy > 0 else [])
        needs |= frozenset[Need](["shown", "every_row"] if self.perception is not None else [])
        return needs | frozenset[Need](["old_logp"] if self.correction is not None else [])

    @property
    def _gate(self) -> Gate:
        values = {field.name: getattr(self, field.name) for field in fields(Gate) if field.name != "kind"}
        return Gate(self.gate, **values)

    def weights(self, mask: Tensor) -> Tensor:
        """Weights [R, K]; see `contracts.Objective`."""
        room = len(mask) * (mask.shape[1] if self.length is None else self.length)
        return weights(mask, self.aggregate, constant=float(room) if self.aggregate == "constant" else None)

    def step_weights(self, mask: Tensor, step_stats: dict[str, Tensor]) -> Tensor | None:
        """Factors [R, K], or None; see `contracts.Objective`."""
        factors = [step_weights(self.weight, mask, step_stats)]
        if self.entropy_share is not None:
            factors.append(top_entropy(self.entropy_share, mask, step_stats))
        factors += [step_stats[name] for name in (CORRECTION, CLIPPED) if name in step_stats]
        return product([factor for factor in factors if factor is not None])

    def weigh(self, rollout: Rollout, adv: Tensor) -> tuple[Rollout, dict[str, Tensor]]:
        """See `contracts.Objective`: decisions that a correction leaves out or weighs, and those picked by covariance.

        Raises ValueError where a correction has no old_logp.
        """
        metrics: dict[str, Tensor] = {}
        stats = dict(rollout.step_stats)
        if self.correction is not None:
            if rollout.old_logp is None:
                raise ValueError("a correction compares who sampled with who trains: Rollout.old_logp is not filled in")
            weight, mask, metrics = self.correction(rollout.old_logp, rollout.rollout_logp, rollout.mask)
            stats[CORRECTION] = weight.to(rollout.rollout_logp)
            rollout = replace(rollout, mask=mask)
        if self.covariance is not None:
            cov = covariance(_old(rollout, self.correction), adv.to(rollout.rollout_logp.device), rollout.mask)
            picked = self.covariance.picked(cov, rollout.mask)
            name = CLIPPED if self.covariance.kind == "clip" else PULLED
            stats[name] = (~picked if name == CLIPPED else picked).to(rollout.rollout_logp)
            metrics["cov/picked"] = picked.sum() / rollout.mask.sum().clamp(min=1)
        return replace(rollout, step_stats=stats), metrics

    def __call__(self, seen: LogProbs, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `contracts.Objective`. Adds the metric `kl` where there is a reference.

        Raises ValueError where `seen` or the step_stats lack what the objective needs.
        """
        stats, old = batch.step_stats, _old(batch, self.correction)
        log_ratio = _centred(seen) * step_stat(stats, "std") if self.ratio == "centred" else None
        if self.gate != "ppo":
            loss, metrics = self._gate.loss(seen.logp, old, batch.adv, batch.mask, log_ratio)
        else:
            loss, metrics = clipped_loss(
                seen.logp,
                old,
                batch.adv,
                clip_low=self.clip_low,
                clip_high=self.clip_high,
                dual=self.dual,
                level=self.level,
                mask=batch.mask,
                log_ratio_limit=self.log_ratio_limit,
                log_ratio=log_ratio,
                far=None if self.kl_mask is None else _far(seen, old, self.kl_mask),
            )
        if self.off_policy_mask is not None:
            away = self._off_policy(seen.logp, batch)
            loss = loss.where(~away, 0.0)
            metrics["off_policy_frac"] = away.to(loss)
        if PULLED in stats and self.covariance is not None:
            loss = loss + self.covariance.coef * stats[PULLED] * difference(seen.logp, old, batch.mask.bool()).abs()
        if self.view.entropy:
            if seen.entropy is None:
                raise ValueError("the objective needs the entropy of each decision, which this policy does not give")
            entropy = seen.entropy.to(loss.dtype).where(batch.mask.bool(), 0.0)
            loss = loss - self.entropy * entropy if self.entropy > 0 else loss
            metrics["entropy"] = entropy.detach()
        if self.perception is not None:
            seeing, more = self.perception.loss(seen.logp, batch.shown, batch.mask)
            loss, metrics = loss + seeing, metrics | more
        if self.kl > 0:
            dt = step_stat(stats, "dt") if self.kl_kind == "exact_dt" else None
            divergence = penalty(self.kl_kind, seen.logp, batch.reference, kl=seen.kl, dt=dt, mask=batch.mask)
            loss = loss + self.kl * divergence
            metrics["kl"] = divergence.detach()
        return loss, metrics

    def _off_policy(self, logp: Tensor, batch: Batch) -> Tensor:
        """Decisions with a negative advantage in rows less likely to who trains than to who sampled, bool [r, k]."""
        valid = batch.mask.bool()
        drift = difference(batch.rollout_logp, logp.detach(), valid).sum(1, keepdim=True) / valid.sum(
            1, keepdim=True
        ).clamp(min=1)
        adv = batch.adv[:, None] if batch.adv.ndim == 1 else batch.adv
        return (drift > (self.off_policy_mask or 0.0)) & (adv < 0) & valid


# name of an objective -> its class, whose fields are keys of a recipe; its clip is one key, `clip`
OBJECTIVES = {"clipped": ClippedObjective}


def _old(given: Rollout | Batch, correction: Correction | None) -> Tensor:
    """The log-probs that the ratio is to: of who trains, where they are given and not passed by, else who sampled."""
    passed = given.old_logp is None or (correction is not None and correction.bypass)
    return given.rollout_logp if passed or given.old_logp is None else given.old_logp


def product(factors: list[Tensor]) -> Tensor | None:
    """The product of tensors of one shape; None of none."""
    return None if not factors else math.prod(factors[1:], start=factors[0])


def _far(seen: LogProbs, rollout_logp: Tensor, limit: float) -> Tensor:
    """Decisions whose Gaussian has moved from the one that was drawn from by a KL of the limit or more."""
    return (_centred(seen) - (seen.logp - rollout_logp)).detach() >= limit


def _centred(seen: LogProbs) -> Tensor:
    if seen.centred is None:
        raise ValueError("the objective compares means with those of the rollout, which this policy does not do")
    return seen.centred
