"""Published numbers of whole losses with corrections, covariances and entropies: verl, OpenRLHF, AReaL, EDGE-GRPO."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import golden
from flowrl.contracts import Batch, LogProbs, Rollout, Samples
from flowrl.core.objectives.aggregate import reduce_metrics, weights
from flowrl.core.objectives.correction import Correction, Rejection
from flowrl.core.objectives.covariance import Covariance, covariance
from flowrl.core.objectives.grpo import CLIPPED, PULLED, ClippedObjective
from flowrl.core.objectives.step_weights import inverse_entropy
from samplers.tokens import token_entropy

Case = dict[str, Any]
VERL, OTHER = "objectives/llm_policy_loss_verl.json", "objectives/llm_policy_loss_other.json"
MODES = {"token-mean": "decision_mean", "seq-mean-token-sum": "seq_mean_sum", "seq-mean-token-mean": "seq_mean_mean"}


def of(*names: str, file: str) -> list:
    return golden.cases(file, where=lambda case: golden.kind(case) in names)


def floats(case: Case) -> dict[str, Tensor]:
    return {name: golden.tensor(value, torch.float64) for name, value in case["inputs"].items()}


def seen_of(logp: Tensor) -> LogProbs:
    return LogProbs(torch.arange(len(logp)), torch.arange(logp.shape[1]), logp)


def weighed(objective: ClippedObjective, adv: Tensor, sampled: Tensor, old: Tensor, mask: Tensor) -> tuple[Any, ...]:
    """(rollout as it is trained, advantages [R, K] as the loss takes them, weights of the loss) of one update."""
    samples = Samples([], torch.zeros(0, dtype=torch.int64))
    rollout, _ = objective.weigh(Rollout(samples, sampled, mask.bool(), None, old_logp=old), adv)
    factor = objective.step_weights(rollout.mask, rollout.step_stats)
    spread = (adv[:, None] if adv.ndim == 1 else adv).expand_as(sampled)
    return rollout, spread if factor is None else spread * factor, objective.weights(rollout.mask)


def total(objective: ClippedObjective, logp: Tensor, rollout: Rollout, adv: Tensor, share: Tensor) -> tuple[Any, ...]:
    old, stats = rollout.old_logp, rollout.step_stats
    loss, metrics = objective(
        seen_of(logp), Batch(rollout.rollout_logp, adv, rollout.mask, step_stats=stats, old_logp=old)
    )
    loss = (loss * share).sum()
    return loss, torch.autograd.grad(loss, logp)[0], reduce_metrics(metrics, weights(rollout.mask))


@pytest.mark.parametrize("case", of("verl.clip_cov", "verl.kl_cov", file=VERL))
def test_covariances(case: Case):
    """The statistic is of the log-probs of now, as verl takes it within its loss."""
    x, params, mask = floats(case), case["params"], golden.tensor(case["inputs"]["response_mask"]).bool()
    logp, adv, old = x["log_prob"].requires_grad_(), x["advantages"], x["old_log_prob"]
    mode = MODES[params["loss_agg_mode"]]
    cov = covariance(logp, adv, mask)
    if golden.kind(case) == "verl.kl_cov":
        kind = Covariance("kl", params["kl_cov_ratio"], coef=params["ppo_kl_coef"])
        objective = ClippedObjective(0.2, 0.2, gate="ratio", log_ratio_limit=20.0, aggregate=mode, covariance=kind)
        stats = {PULLED: kind.picked(cov, mask).to(cov)}
        loss, grad, means = total(objective, logp, rollout_of(old, mask, stats), adv, weights(mask, mode))
        absolute = ((logp - old).detach().abs() * weights(mask)).sum()
        golden.check({"loss": loss, "grad": grad, "ppo_kl": absolute}, case)
        return
    clips = params["clip_ratio_low"], params["clip_ratio_high"]
    kind = Covariance("clip", params["clip_cov_ratio"], params["clip_cov_lb"], params["clip_cov_ub"])
    objective = ClippedObjective(*clips, log_ratio_limit=20.0, aggregate=mode, covariance=kind)
    clipped = objective(seen_of(logp), Batch(old, adv, mask))[1]["clip_frac"].bool()
    picked = kind.picked(cov, mask, clipped)
    stats = {CLIPPED: (~picked).to(cov)}
    factor = objective.step_weights(mask, stats)
    loss, grad, means = total(objective, logp, rollout_of(old, mask, stats), adv * factor, weights(mask, mode))
    share = (picked * weights(mask)).sum()
    golden.check({"loss": loss, "grad": grad, "ppo_kl": -means["log_ratio"], "pg_clipfrac": share}, case)


def rollout_of(logp: Tensor, mask: Tensor, stats: dict[str, Tensor]) -> Rollout:
    return Rollout(Samples([], torch.zeros(0, dtype=torch.int64)), logp, mask, None, step_stats=stats)


def rejections(given: Case) -> tuple[Rejection, ...]:
    """As verl writes them, whose k1 is bounded in the inverse ratio."""
    found = []
    options, bounds = given.get("rollout_rs"), str(given.get("rollout_rs_threshold"))
    for option, bound in zip(options.split(","), bounds.split(","), strict=True) if options else ():
        level, _, by = option.strip().rpartition("_")
        low, _, high = bound.rpartition("_")
        inverse = {"high": 1 / float(low or 1 / float(high)), "low": 1 / float(high)}
        found.append(Rejection(by, level, **(inverse if by == "k1" else {"high": float(high)})))
    return tuple(found)


@pytest.mark.parametrize("case", of("verl.bypass_mode", file=VERL))
def test_bypass(case: Case):
    """verl rejects by the policy of now, here the one that trains before the update, which is given as such."""
    x, params, mask = floats(case), case["params"], golden.tensor(case["inputs"]["response_mask"]).bool()
    given, mode = params["rollout_correction"], MODES[params["loss_agg_mode"]]
    logp, sampled = x["log_prob"].requires_grad_(), x["old_log_prob"]
    correction = Correction("none", reject=rejections(given), bypass=True)
    options: dict[str, Any] = dict(log_ratio_limit=20.0, aggregate=mode, correction=correction)
    if given.get("loss_type") == "reinforce" and given.get("rollout_is"):
        level = {"token": "token", "sequence": "seq_sum"}[given["rollout_is"]]
        clips = 1.0, given.get("rollout_is_threshold", 2.0) - 1
        objective = ClippedObjective(*clips, gate="is_clip", level=level, **options)
    elif given.get("loss_type") == "reinforce":
        objective = ClippedObjective(0.2, 0.2, gate="pg", **options)
    else:
        clips = params["clip_ratio_low"], params["clip_ratio_high"]
        objective = ClippedObjective(*clips, dual=params["clip_ratio_c"], **options)
    rollout, adv, share = weighed(objective, x["advantages"], sampled, logp.detach(), mask)
    loss, grad, means = total(objective, logp, rollout, adv, share)
    got = {"loss": loss, "grad": grad, "ppo_kl": -means["log_ratio"]}
    got |= {"pg_clipfrac": means["clip_frac"], "pg_clipfrac_lower": means["dual_frac"]}
    golden.check({name: got[name] for name in case["outputs"]}, case)


OPENRLHF = ("openrlhf.policy_loss.ppo", "openrlhf.policy_loss.gspo", "openrlhf.policy_loss.ppo.tis")
OPENRLHF += ("openrlhf.policy_loss.ppo.icepop", "openrlhf.policy_loss.ppo.seq-mask-tis")


@pytest.mark.parametrize("case", of(*OPENRLHF, file=OTHER))
def test_losses_of_openrlhf(case: Case):
    x, params, mask = floats(case), case["params"], golden.tensor(case["inputs"]["response_mask"]).bool()
    correction = None
    if params["enable_vllm_is_correction"]:
        kind = {"tis": "tis", "icepop": "icepop", "seq-mask-tis": "seq_mask"}[params["vllm_is_correction_type"]]
        correction = Correction(kind, *params["vllm_is_truncated_threshold"])
    gspo = params["policy_loss_type"] == "gspo"
    objective = ClippedObjective(
        params["clip_eps_low"],
        params["clip_eps_high"],
        dual=params["dual_clip"],
        level="seq_mean" if gspo else "token",
        aggregate="decision_mean" if params["token_level_loss"] else "seq_mean_mean",
        correction=correction,
    )
    logp = x["log_prob"].requires_grad_()
    old = x["old_log_prob"]
    sampled = x["rollout_log_prob"] if correction is not None else old
    rollout, adv, _ = weighed(objective, x["advantages"], sampled, old, mask)
    share = weights(mask, objective.aggregate, count_empty_rows=True)
    loss, grad, means = total(objective, logp, rollout, adv, share)
    moved = -means["log_ratio"] if params["token_level_loss"] else None
    left = ["clip_ratio", "ppo_kl"] if moved is None or gspo else ["clip_ratio"]
    got = {"loss": loss, "grad": grad} | ({} if "ppo_kl" in left else {"ppo_kl": moved})
    golden.check(got, case, skip=left)


@pytest.mark.parametrize("case", of("areal.decoupled_ppo", file=OTHER))
def test_decoupled_ppo(case: Case):
    x, params, mask = floats(case), case["params"], golden.tensor(case["inputs"]["response_mask"]).bool()
    rejection = params["rejection_sampling"]
    high = params["eps_clip"] if params["eps_clip_higher"] is None else params["eps_clip_higher"]
    level = {"token": "token", "sequence": "seq_mean"}[params["importance_sampling_level"]]
    correction = None if rejection is None else of_areal(rejection)
    objective = ClippedObjective(params["eps_clip"], high, dual=params["c_clip"], level=level, correction=correction)
    logp = x["log_prob"].requires_grad_()
    old = x["proximal_log_prob"]
    sampled = x["behave_log_prob"] if correction is not None else old
    rollout, adv, share = weighed(objective, x["advantages"], sampled, old, mask)
    assert torch.equal(rollout.mask, mask)  # the divisor stays
    loss, grad, _ = total(objective, logp, rollout, adv, share)
    got = {"loss": loss, "grad": grad}
    if "behave_imp_weight" in case["outputs"]:
        got["behave_imp_weight"] = rollout.step_stats["correction"]
    golden.check(got, case)


def of_areal(rejection: Case) -> Correction:
    level = {"token": "token", "sequence": "seq_mean"}[rejection["level"]]
    low, high = rejection.get("lower"), rejection["upper"]
    if rejection["metric"] == "ratio":
        kind = "tis" if rejection["action"] == "clamp" else "icepop"
        return Correction(kind, 0.0 if low is None else low, high, level)
    of_rows = {"mean": "seq_mean", "sum": "seq_sum", "max": "seq_max"}[rejection.get("agg", "mean")]
    reject = Rejection(
        rejection["metric"].removeprefix("kl_"), level if level == "token" else of_rows, high, keeps=True
    )
    return Correction("tis", 0.0, float("inf"), reject=(reject,))


@pytest.mark.parametrize("case", of("verl.entropy", file="objectives/llm_value_entropy.json"))
def test_entropies(case: Case):
    logits, mask = golden.tensor(case["inputs"]["logits"], torch.float64), case["inputs"]["response_mask"]
    logits.requires_grad_()
    mask = golden.tensor(mask).bool()
    entropy = token_entropy(logits, 1.0, torch.float64)
    mode = MODES.get(case["params"]["loss_agg_mode"])
    share = weights(mask, mode) if mode else weights(mask, "constant", constant=mask.shape[1])
    loss = (entropy * share).sum()
    golden.check({"entropy": entropy, "loss": loss, "grad": torch.autograd.grad(loss, logits)[0]}, case)


@pytest.mark.parametrize("case", of("edge_grpo.advantage", file="objectives/llm_advantage_other.json"))
def test_entropy_scaled_advantages(case: Case):
    """The reference's mean is over padding too, so that all decisions count here."""
    x = floats(case)
    every = torch.ones_like(x["token_entropy"], dtype=torch.bool)
    factor = inverse_entropy(x["token_entropy"], every)
    golden.check({"advantages": x["advantages"] * factor[:, 0]}, case)
    objective = ClippedObjective(0.2, 0.2, weight="inverse_entropy")
    assert torch.equal(objective.step_weights(every, {"entropy": x["token_entropy"]}), factor)
    assert replace(objective, weight="none").step_weights(every, {}) is None
