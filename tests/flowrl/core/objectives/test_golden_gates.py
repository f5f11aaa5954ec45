"""Published numbers of losses beside the clipped one: CISPO, SAPO, VESPO, GMPO, GPG, REINFORCE, OPMD."""

from typing import Any

import pytest
import torch
from torch import Tensor

import golden
from flowrl.contracts import Batch, LogProbs
from flowrl.core.objectives.aggregate import reduce_metrics, weights
from flowrl.core.objectives.divergence import penalty
from flowrl.core.objectives.grpo import ClippedObjective

Case = dict[str, Any]
VERL, TRL, OTHER = (f"objectives/llm_policy_loss_{name}.json" for name in ("verl", "trl", "other"))
VERL_GATES = {
    "verl.cispo": "is_clip",
    "verl.sapo": "sigmoid",
    "verl.geo_mean": "log_clip_then_mean",
    "verl.gpg": "pg",
    "verl.reinforce": "pg",
}
TRL_GATES = {"trl.cispo": "is_clip", "trl.sapo": "sigmoid", "trl.gmpo": "log_clip_then_mean", "trl.vespo": "gamma"}
MODES = {"token-mean": "decision_mean", "seq-mean-token-sum": "seq_mean_sum", "seq-mean-token-mean": "seq_mean_mean"}


def floats(case: Case) -> dict[str, Tensor]:
    return {name: golden.tensor(value, torch.float32) for name, value in case["inputs"].items()}


def loss_of(objective: ClippedObjective, logp: Tensor, rollout_logp: Tensor, x: dict[str, Tensor], mask: Tensor) -> Any:
    rows, columns = torch.arange(len(logp)), torch.arange(logp.shape[1])
    return objective(LogProbs(rows, columns, logp), Batch(rollout_logp, x["advantages"], mask.bool()))


@pytest.mark.parametrize("case", golden.cases(VERL, where=lambda case: golden.kind(case) in VERL_GATES))
def test_gates_of_verl(case: Case):
    x, params, gate = floats(case), case["params"], VERL_GATES[golden.kind(case)]
    logp, mask = x["log_prob"].requires_grad_(), x["response_mask"]
    clips = (params.get("clip_ratio_low", 0.2), params.get("clip_ratio_high", 0.2))
    numbers = {name: params[name] for name in ("tau_pos", "tau_neg") if name in params}
    objective = ClippedObjective(*clips, gate=gate, log_ratio_limit=20.0, **numbers)
    loss, metrics = loss_of(objective, logp, x["old_log_prob"], x, mask)
    factor = x.get("rollout_is_weights", torch.ones(()))
    if gate == "log_clip_then_mean":
        number = mask.sum(1, keepdim=True).clamp(min=1)
        factor = (factor.log().where(mask.bool(), 0.0).sum(1, keepdim=True) / number).exp() if factor.ndim else factor
    share = weights(mask, MODES[params.get("loss_agg_mode", "seq-mean-token-mean")])
    loss = (loss * factor * share).sum()
    means = reduce_metrics(metrics, weights(mask))
    got = {"loss": loss, "grad": torch.autograd.grad(loss, logp)[0], "ppo_kl": -means["log_ratio"]}
    left = [name for name in ("pg_clipfrac", "pg_clipfrac_lower") if name in case["outputs"]]
    golden.check({name: got[name] for name in got if name in case["outputs"]}, case, skip=left)


@pytest.mark.parametrize("case", golden.cases(TRL, where=lambda case: golden.kind(case) in TRL_GATES))
def test_gates_of_trl(case: Case):
    x, params, name = floats(case), case["params"], golden.kind(case)
    logp, mask = x["log_prob"].requires_grad_(), x["completion_mask"] * x.get("tool_mask", torch.ones(()))
    clips = (params.get("epsilon", 0.2), params.get("epsilon_high", 0.2))
    numbers = {key: params[of] for key, of in NUMBERS.items() if of in params}
    clips = (1.0, params["epsilon_high"] - 1) if name == "trl.cispo" else clips
    level = "seq_sum" if name == "trl.vespo" else "token"
    objective = ClippedObjective(*clips, gate=TRL_GATES[name], level=level, **numbers)
    sampling = x.get("importance_sampling_ratio", torch.ones(()))
    in_ratio = name == "trl.vespo"  # there it multiplies the ratio itself
    rollout_logp = x["old_log_prob"] - sampling.log() if in_ratio else x["old_log_prob"]
    loss, _ = loss_of(objective, logp, rollout_logp, x, mask)
    loss = loss if in_ratio else loss * sampling
    if params.get("beta"):
        loss = loss + params["beta"] * penalty("k3", logp, x["ref_log_prob"], mask=mask)
    if name in ("trl.cispo", "trl.vespo"):
        share = weights(mask)
    else:
        share = weights(mask, "seq_mean_mean", count_empty_rows=True)
    loss = (loss * share).sum()
    golden.check({"loss": loss, "grad": torch.autograd.grad(loss, logp)[0]}, case)


NUMBERS = {"tau_pos": "sapo_temperature_pos", "tau_neg": "sapo_temperature_neg", "k_pos": "vespo_k_pos"}
NUMBERS |= {"lambda_pos": "vespo_lambda_pos", "k_neg": "vespo_k_neg", "lambda_neg": "vespo_lambda_neg"}


@pytest.mark.parametrize("case", golden.cases(OTHER, where=lambda case: golden.kind(case) == "opmd.loss"))
def test_the_loss_of_opmd(case: Case):
    x = floats(case)
    logp, mask = x["log_prob"].requires_grad_(), x["response_mask"]
    x["advantages"] = x["advantages"] / (1 + case["params"]["tau"])
    loss, _ = loss_of(ClippedObjective(0.2, 0.2, gate="pg"), logp, logp.detach(), x, mask)
    loss = (loss * weights(mask)).sum()
    golden.check({"loss": loss, "grad": torch.autograd.grad(loss, logp)[0]}, case)
