"""Published numbers of advantages, losses, divergences and aggregation: every case is checked here or elsewhere."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import golden
from flowrl.contracts import Batch, LogProbs, Prompt
from flowrl.core.advantages.combined import advantage_metrics, advantages, group_stats
from flowrl.core.advantages.normalise import whiten
from flowrl.core.objectives import divergence
from flowrl.core.objectives.aggregate import reduce_metrics, weights
from flowrl.core.objectives.clipped import clipped_loss
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.selection import extremes
from flowrl.policies.pipelines.walks.trajectory import Trajectory
from samplers.gaussian import Gaussian
from samplers.plan import Plan

Case = dict[str, Any]
FILES = (
    "samplers/advantages.json",
    "samplers/losses.json",
    "objectives/llm_kl.json",
    "objectives/llm_aggregation.json",
    "objectives/llm_policy_loss_verl.json",
    "objectives/llm_policy_loss_trl.json",
    "objectives/llm_advantage_verl.json",
)
# in objectives/test_golden_gates.py and test_golden_advantages.py
GATED = {"verl.sapo", "trl.sapo", "verl.gpg", "verl.reinforce", "verl.cispo", "trl.cispo", "trl.vespo", "trl.gmpo"}
GATED |= {"verl.geo_mean", "verl.adv.grpo_passk", "verl.adv.opo", "verl.adv.gpg"}
GATED |= {f"verl.adv.{name}" for name in ("remax", "reinforce_plus_plus", "gae", "optimal_token_baseline")}
GATED |= {"verl.adv.multi_turn_optimal_token_baseline"}
# in objectives/test_golden_matching.py and test_golden_preference.py
ELSEWHERE = {"nft_reward_probability", "diffusion_nft", "flow_grpo_per_prompt_sft", "flow_grpo_per_prompt_dpo"} | GATED
ELSEWHERE |= {"verl.clip_cov", "verl.kl_cov", "verl.bypass_mode"}  # in objectives/test_golden_corrected.py
# Squares of differences of means or velocities, divided by no variance: no divergence of ours, whose coefficients are
# other numbers.
BARE_SQUARES = ("flow_factory_x_based", "flow_factory_v_based")

CHECKS: dict[str, golden.Check] = {}
checks = partial(golden.checks, CHECKS)


def formula(case: Case) -> str:
    return golden.kind(case)


def labels(names: list) -> Tensor:
    return torch.tensor([sorted(set(names)).index(name) for name in names])


def floats(case: Case) -> dict[str, Tensor]:
    return {name: golden.tensor(value, torch.float32) for name, value in case["inputs"].items()}


def alone(case: Case, group: Tensor, **options: Any) -> Tensor:
    rewards = golden.tensor(case["inputs"]["rewards"], torch.float32)
    return advantages({"r": rewards}, group, weights={"r": 1.0}, clip=None, **options)


def consecutive(case: Case, num: int) -> Tensor:
    return torch.arange(num) // case["params"]["num_generations"]


# ---- advantages of the image side


@checks("flow_grpo_per_prompt_grpo", "flow_grpo_per_prompt_rwr")
def flow_grpo(case: Case) -> None:
    group = labels(case["inputs"]["prompts"])
    if case["params"]["type"] == "rwr":
        options = dict(baseline="none", scale="none")
    else:
        options = dict(scale="batch" if case["params"]["global_std"] else "group")
    adv = alone(case, group, **options)
    rewards = {"r": golden.tensor(case["inputs"]["rewards"])}
    metrics = advantage_metrics(rewards, group, adv, weights={"r": 1.0})
    golden.check({"advantages": adv, "zero_std_ratio": metrics["groups/zero_variance"]}, case)


@checks("flow_grpo_tracker_state")
def flow_grpo_tracker(case: Case) -> None:
    """The tracker is emptied every epoch, so its state is the grouping of one batch."""
    rewards, group = golden.tensor(case["inputs"]["rewards"]), labels(case["inputs"]["prompts"])
    stats = group_stats(rewards, group)
    members = {name: rewards[stats.index == position] for position, name in enumerate("ab")}
    sizes = [float(stats.count.mean()), len(stats.count)]
    golden.check({"stats_after_update": members, "avg_group_size_and_history": sizes}, case)
    torch.testing.assert_close(stats.mean, torch.stack([m.double().mean() for m in members.values()]))


@checks("dance_grpo_group", "mixgrpo_reward_aggr")
def dance_grpo(case: Case) -> None:
    group = consecutive(case, len(case["inputs"]["rewards"]))
    adv = alone(case, group, unbiased=True, eps=1e-8, trim=case["params"].get("trimmed_ratio", 0.0))
    golden.check({"advantages": adv}, case)


@checks("dance_grpo_no_group")
def dance_grpo_batch(case: Case) -> None:
    group = torch.arange(len(case["inputs"]["rewards"]))
    golden.check({"advantages": alone(case, group, baseline="batch", scale="batch", unbiased=True, eps=1e-8)}, case)


@checks("mixgrpo_multi_reward")
def mixgrpo(case: Case) -> None:
    rewards = floats({"inputs": case["inputs"]["rewards"]})
    group = consecutive(case, len(next(iter(rewards.values()))))
    got = {}
    for name, combine in (("advantages_advantage_space", "per_reward"), ("advantages_reward_space", "sum")):
        options = dict(weights=case["params"]["normalised_weights"], unbiased=True, eps=1e-8, clip=None)
        got[name] = advantages(rewards, group, combine=combine, **options)
    golden.check(got, case)


@checks("verl_omni_flow_grpo")
def verl_omni(case: Case) -> None:
    params = case["params"]
    scale = ("batch" if params["global_std"] else "group") if params["norm_adv_by_std"] else "none"
    options = dict(scale=scale, unbiased=True, eps=params["epsilon"])
    golden.check({"advantages": alone(case, labels(case["inputs"]["group_ids"]), **options)}, case)


@checks("flow_factory_sum", "flow_factory_gdpo")
def flow_factory(case: Case) -> None:
    rewards, group = floats({"inputs": case["inputs"]["rewards"]}), labels(case["inputs"]["group_ids"])
    if formula(case) == "flow_factory_gdpo":
        options = dict(combine="per_reward", standardise=True)
    else:
        options = dict(combine="sum", scale="batch" if case["params"]["global_std"] else "group")
    adv = advantages(rewards, group, weights=case["params"]["weights"], eps=0.0, floor=1e-6, clip=None, **options)
    golden.check({"advantages": adv}, case)


@checks("dance_grpo_best_of_n")
def best_of_n(case: Case) -> None:
    """By the weighted sum of the advantages of each reward."""
    params, num = case["params"], case["params"]["num_generations"]
    rewards = {name: golden.tensor(case["inputs"][f"{name}_rewards"], torch.float32) for name in ("vq", "mq")}
    group = torch.zeros(num, dtype=torch.int64)
    options: dict[str, Any] = dict(combine="per_reward", unbiased=True, eps=1e-8, clip=None)
    total = {name: params[f"{name}_coef"] for name in rewards}
    adv = advantages(rewards, group, weights=total, **options)
    got = {f"{n}_advantages": advantages({n: r}, group, weights={n: 1.0}, **options) for n, r in rewards.items()}
    kept = extremes(adv, group, params["bestofn"]).nonzero()[:, 0].tolist()
    golden.check(got | {"selected_indices_sorted": kept}, case)


@checks("same_latent_seeds")
def shared_latents(case: Case) -> None:
    """Which samples begin at one latent, with `sampler.share_noise`: those of equal prompts, as by the published seeds.

    The seeds themselves are other numbers here: they are a hash of the run's seed, the prompt's id and the sample (see
    policies/noise.py), and hang on no batch, as the published ones do by their base.
    """
    names, published = list(dict.fromkeys(case["inputs"]["prompts"])), case["outputs"]["seeds"]
    tree = Plan(4, (0, 2), (2,), share_noise=True).tree(3)
    walks = Trajectory([Prompt(name, name) for name in names], tree, seed=case["params"]["base_seed"])
    found = [{walks.start(p, leaf).number("start") for leaf in tree.leaves} for p in range(len(names))]
    assert [len(starts) for starts in found] == [1] * len(names)
    mine = dict(zip(names, found, strict=True))
    got = [[mine[a] == mine[b] for b in case["inputs"]["prompts"]] for a in case["inputs"]["prompts"]]
    assert got == [[a == b for b in published] for a in published]


# ---- advantages of the text side

GRPO = dict(unbiased=True, eps=1e-6, singleton="raw")
VERL: dict[str, dict[str, Any]] = {
    "verl.adv.grpo": GRPO,
    "verl.adv.grpo_vectorized": GRPO | dict(eps=0.0, floor=1e-3),
    "verl.adv.rloo_outcome": dict(baseline="leave_one_out", scale="none", singleton="raw"),
    "verl.adv.rloo_vectorized": dict(baseline="leave_one_out", scale="none"),
    "verl.adv.reinforce_plus_plus_baseline": dict(scale="none"),
}


@checks(*VERL)
def verl_advantages(case: Case) -> None:
    mask = golden.tensor(case["inputs"]["response_mask"])
    outcome = golden.tensor(case["inputs"]["token_level_rewards"], torch.float32).sum(1)
    options = dict(VERL[formula(case)])
    if not case["params"].get("norm_adv_by_std_in_grpo", True):
        options["scale"] = "none"
    adv = advantages({"r": outcome}, labels(case["inputs"]["index"]), weights={"r": 1.0}, clip=None, **options)
    spread = adv[:, None] * mask
    if formula(case) == "verl.adv.reinforce_plus_plus_baseline":
        spread = whiten(spread, mask)
    golden.check({"advantages": spread, "returns": spread}, case)


# ---- policy losses


@checks("ppo_clip")
def latent_ppo(case: Case) -> None:
    x, limit = floats(case), case["params"]["adv_clip_max"]
    clips = dict(clip_low=case["params"]["clip_range"], clip_high=case["params"]["clip_range"])
    adv = x["advantages"].clamp(-limit, limit)
    loss, metrics = clipped_loss(x["log_prob"][:, None], x["old_log_prob"][:, None], adv, **clips)
    got = {"loss": loss.mean(), "ratio": metrics["ratio"][:, 0], "clip_fraction": metrics["outside_frac"].mean()}
    golden.check(got, case)


@checks("verl.vanilla", "verl.gspo")
def verl_policy(case: Case) -> None:
    x, params, gspo = floats(case), case["params"], formula(case) == "verl.gspo"
    logp, mask = x["log_prob"].requires_grad_(), x["response_mask"]
    options = dict(clip_low=params["clip_ratio_low"], clip_high=params["clip_ratio_high"], mask=mask)
    if gspo:
        options |= dict(level="seq_token", log_ratio_limit=10.0)
    else:
        options |= dict(dual=params["clip_ratio_c"], log_ratio_limit=20.0)
    loss, metrics = clipped_loss(logp, x["old_log_prob"], x["advantages"], **options)
    mode = "seq-mean-token-mean" if gspo else params["loss_agg_mode"]
    share = verl_weights(mask, mode, params.get("global_batch_info") or {})
    loss = (loss * x.get("rollout_is_weights", torch.ones(())) * share).sum()
    means = reduce_metrics(metrics, weights(mask))
    got = {"loss": loss, "grad": torch.autograd.grad(loss, logp)[0], "ppo_kl": -means["log_ratio"]}
    golden.check(got | {"pg_clipfrac": means["clip_frac"], "pg_clipfrac_lower": means["dual_frac"]}, case)


def verl_weights(mask: Tensor, mode: str, given: Case) -> Tensor:
    """The weights of this rank's rows: global counts become rows of the global mask, the number of ranks a factor."""
    if mode == "seq-mean-token-sum-norm":
        return weights(mask, "constant", constant=given.get("loss_scale_factor") or mask.shape[1])
    name = {"token-mean": "decision_mean", "seq-mean-token-sum": "seq_mean_sum"}.get(mode, "seq_mean_mean")
    rows, width = mask.shape
    if mode == "token-mean" and given.get("batch_num_tokens"):
        missing = int(given["batch_num_tokens"] - mask.sum())
        elsewhere = (torch.arange(-(-missing // width) * width) < missing).reshape(-1, width)
    else:
        elsewhere = torch.ones((given.get("global_batch_size") or rows) - rows, width)
    return weights(torch.cat([mask.bool(), elsewhere.bool()]), name)[:rows] * given.get("dp_size", 1)


@checks("trl.grpo", "trl.bnpo", "trl.dapo", "trl.dr_grpo", "trl.gspo_token", "trl.luspo", "trl.rloo_loss")
def trl_policy(case: Case) -> None:
    x, params, name = floats(case), case["params"], formula(case)
    mask = x["completion_mask"] * x.get("tool_mask", torch.ones(()))
    logp = x["log_prob"].requires_grad_()
    levels = {"token": "token", "sequence": "seq_mean", "sequence_token": "seq_token"}
    level = "seq_sum" if name == "trl.rloo_loss" else levels[params["importance_sampling_level"]]
    clips: dict[str, Any] = dict(clip_low=params["epsilon"], clip_high=params["epsilon_high"])
    clips["dual"] = params.get("delta")
    share, limit = params.get("top_entropy_quantile"), params.get("off_policy_mask_threshold")
    share = share if "entropies" in x else None
    objective = ClippedObjective(level=level, entropy_share=share, off_policy_mask=limit, **clips)
    adv, entropy = x["advantages"], x.get("entropies")
    factor = objective.step_weights(mask.bool(), {} if entropy is None else {"entropy": entropy})
    adv = adv if factor is None else adv[:, None] * factor
    entropy = None if entropy is None else entropy.requires_grad_()
    seen = LogProbs(torch.arange(len(logp)), torch.arange(logp.shape[1]), logp, entropy=entropy)
    sampled = x.get("sampling_log_prob", x["old_log_prob"])
    batch = Batch(sampled, adv, mask.bool(), old_logp=x["old_log_prob"])
    loss, _ = objective(seen, batch)
    if (coef := params.get("entropy_coef")) is not None:
        bonus = replace(objective, entropy=coef)(seen, batch)[0] - loss
    else:
        bonus = torch.zeros(())
    loss = loss * x.get("importance_sampling_ratio", torch.ones(())) + bonus
    if params.get("beta"):
        rollout_logp = x["old_log_prob"] if params.get("use_bias_correction_kl") else None
        loss = loss + params["beta"] * divergence.penalty(
            "k3", logp, x["ref_log_prob"], rollout_logp=rollout_logp, mask=mask
        )
    loss = (loss * trl_weights(mask, name, params)).sum()
    got = {"loss": loss, "grad": torch.autograd.grad(loss, logp, retain_graph=True)[0]}
    if "grad_entropies" in case["outputs"]:
        got["grad_entropies"] = torch.autograd.grad(loss, entropy)[0]
    golden.check(got, case)


def trl_weights(mask: Tensor, name: str, params: Case) -> Tensor:
    if name in ("trl.bnpo", "trl.dapo"):
        return weights(mask)
    if name == "trl.dr_grpo":
        return weights(mask, "constant", constant=len(mask) * params["max_completion_length"])
    mode = "seq_mean_sum" if name == "trl.luspo" else "seq_mean_mean"
    return weights(mask, mode, count_empty_rows=True)


# ---- divergences and their coefficients, aggregation


@checks("kl_variants")
def kl_variants(case: Case) -> None:
    """The exact one, as Wan's trainer has it; times |dt|, as those of SD3 and FLUX do; and MixGRPO's of log-probs."""
    x = floats(case)
    mean, reference = x["prev_sample_mean"].double(), x["ref_prev_sample_mean"].double()
    std, dt = (x["std_dev_t"] * x["sqrt_dt"]).double(), -x["sqrt_dt"].double().square()
    kl = Gaussian(mean, std).kl(Gaussian(reference, std))[:, None]
    of_drift = divergence.penalty("exact_dt", kl=kl, dt=dt.expand_as(kl)).mean()
    k2 = divergence.penalty("k2", x["log_prob"][:, None], x["old_log_prob"][:, None])
    got = {"flow_grpo_wan_kl": divergence.penalty("exact", kl=kl).mean(), "mixgrpo_kl": k2.mean()}
    golden.check(got | {"flow_grpo_sd3_flux_kl": of_drift, "verl_omni_kl": of_drift}, case, skip=BARE_SQUARES)


@checks("flow_dppo")
def flow_dppo(case: Case) -> None:
    """The case draws log-probs and means apart from each other; ours reads the divergence off the centred log-ratio."""
    x = floats(case)
    mean, old = x["prev_sample_mean"].double(), x["old_prev_sample_mean"].double()
    std = (x["std_dev_t"] * (x["sqrt_dt"] if case["params"]["add_kl_coefficient"] else 1.0)).double()
    kl = Gaussian(mean, std).kl(Gaussian(old, std))[:, None]
    logp, rollout_logp = (x[name].double()[:, None] for name in ("log_prob", "old_log_prob"))
    score = LogProbs(torch.arange(len(kl)), torch.arange(1), logp, centred=kl + logp - rollout_logp)
    objective = ClippedObjective(0.0, 0.0, kl_mask=case["params"]["kl_mask_threshold"])
    mask = torch.ones_like(kl, dtype=torch.bool)
    loss, metrics = objective(score, Batch(rollout_logp, x["advantages"], mask))
    got = {"loss": loss.mean(), "masked_fraction": metrics["clip_frac"].mean()}
    golden.check(got | {"kl_mean": kl.mean(), "kl_max": kl.max()}, case)


@checks("verl.kl_penalty", "verl.kl_penalty.straight_through", "slime.approx_kl")
def estimators(case: Case) -> None:
    x, params = floats(case), case["params"]
    logp = x["log_prob"].requires_grad_()
    kind = params.get("kl_penalty") or params["kl_loss_type"]
    verl = formula(case).startswith("verl")
    limits = dict(log_ratio_limit=20.0) if verl else {}
    limits |= dict(value_limit=10.0) if verl or kind == "low_var_kl" else {}
    rollout_logp = x["old_log_prob"] if params.get("use_importance_ratio") else None
    base = "k3" if kind == "low_var_kl" else kind.rstrip("+")
    options = dict(rollout_logp=rollout_logp, straight_through=kind.endswith("+"), **limits)
    kl = divergence.penalty(base, logp, x["ref_log_prob"], **options)
    grad = torch.autograd.grad((kl * x.get("response_mask", torch.ones(()))).sum(), logp)[0]
    golden.check({"kl": kl, "grad": grad}, case)


@checks("verl.apply_kl_penalty")
def kl_in_reward(case: Case) -> None:
    x, params = floats(case), case["params"]
    mask, coef = x["response_mask"], params["init_kl_coef"]
    limits = dict(log_ratio_limit=20.0, value_limit=10.0)
    kl = divergence.penalty(params["kl_penalty"], x["old_log_prob"], x["ref_log_prob"], mask=mask, **limits)
    current = float((kl * weights(mask, "seq_mean_mean")).sum())
    target = dict(target=params["target_kl"], horizon=params["horizon"])
    after = divergence.adaptive_coefficient(coef, current, num_samples=len(mask), **target)
    rewards = x["token_level_scores"] - coef * kl
    golden.check({"token_level_rewards": rewards, "current_kl": current, "coef_after": after}, case)


@checks("verl.adaptive_kl_controller")
def adaptive(case: Case) -> None:
    params, coefs = case["params"], [case["params"]["init_kl_coef"]]
    target = dict(target=params["target_kl"], horizon=params["horizon"])
    for kl, num in zip(case["inputs"]["current_kl"], case["inputs"]["n_steps"], strict=True):
        coefs.append(divergence.adaptive_coefficient(coefs[-1], kl, num_samples=num, **target))
    golden.check({"coef_after": coefs[1:]}, case)


@checks("papo.annealing_coef")
def annealing(case: Case) -> None:
    params = case["params"]
    ends = dict(start=params["start_value"], end=params["end_value"], total=params["total_steps"])
    coefs = [divergence.linear_coefficient(update, **ends) for update in range(1, params["updates"] + 1)]
    golden.check({"coef_after": coefs}, case)


@checks("verl.agg_loss")
def aggregation(case: Case) -> None:
    x = floats(case)
    matrix = x["loss_mat"].requires_grad_()
    loss = (matrix * verl_weights(x["loss_mask"], case["params"]["loss_agg_mode"], case["params"])).sum()
    golden.check({"loss": loss, "grad": torch.autograd.grad(loss, matrix)[0]}, case)


# ---- every case, checked or named


@pytest.mark.parametrize("case", golden.cases(*FILES, where=lambda case: formula(case) in CHECKS))
def test_published_numbers(case: Case) -> None:
    CHECKS[formula(case)](case)


@pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
def test_every_case_is_checked() -> None:
    seen = [case for path in FILES for case in golden.load(path)]
    assert set(CHECKS).isdisjoint(ELSEWHERE)
    golden.account(map(formula, seen), ELSEWHERE | set(CHECKS))
