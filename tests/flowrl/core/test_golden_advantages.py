"""Published numbers of advantages: TRL, ms-swift, AReaL, ROLL, Pass@k, OPMD, and verl's beyond GRPO and RLOO."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import golden
from flowrl.core.advantages.combined import advantages
from flowrl.core.advantages.normalise import whiten
from flowrl.core.advantages.returns import (
    at_last,
    gae,
    lambda_by_length,
    optimal_token,
    prefix_average,
    reward_to_go,
    two_level,
    value_differences,
)
from flowrl.core.objectives.divergence import penalty

Case = dict[str, Any]
VERL, OTHER = (f"objectives/llm_advantage_{name}.json" for name in ("verl", "other"))
ELSEWHERE = {"edge_grpo.advantage"}  # in objectives/test_golden_corrected.py
CHECKS: dict[str, golden.Check] = {}
checks = partial(golden.checks, CHECKS)


def rows_of(case: Case, name: str = "rewards") -> Tensor:
    return golden.tensor(case["inputs"][name], torch.float64)


def one(rewards: Tensor, size: int, **options: Any) -> Tensor:
    """Advantages of one reward; groups are consecutive rows of this size."""
    group = torch.arange(len(rewards)) // size
    return advantages({"r": rewards}, group, weights={"r": 1.0}, clip=None, unbiased=True, **options)


def several(case: Case, **options: Any) -> Tensor:
    columns = rows_of(case, "rewards_per_func").unbind(1)
    weights = {str(i): weight for i, weight in enumerate(case["params"]["reward_weights"])}
    group = torch.arange(len(columns[0])) // case["params"]["num_generations"]
    rewards = {str(i): column for i, column in enumerate(columns)}
    return advantages(rewards, group, weights=weights, clip=None, unbiased=True, **options)


@checks(*(f"trl.adv.sum_then_normalize.{scale}" for scale in ("group", "batch", "none")))
def trl_sum(case: Case) -> None:
    golden.check({"advantages": several(case, combine="sum", scale=case["params"]["scale_rewards"])}, case)


@checks("trl.adv.normalize_then_sum.group", "swift.adv.grpo.gdpo")
def gdpo(case: Case) -> None:
    """Ours takes the weighted mean of what theirs sums, so that what is added to the last std is as much smaller."""
    size = sum(abs(weight) for weight in case["params"]["reward_weights"])
    eps = 1e-8 if golden.kind(case) == "swift.adv.grpo.gdpo" else 1e-4
    each = several(case, combine="per_reward", eps=eps) * size
    last = 1e-4 if golden.kind(case) == "trl.adv.normalize_then_sum.group" else 1e-8
    adv = one(each, len(each), baseline="batch", scale="batch", eps=last)
    golden.check({"advantages": adv}, case, skip=("rewards",))


@checks("trl.adv.rloo")
def trl_rloo(case: Case) -> None:
    params, rewards = case["params"], rows_of(case)
    if params["reward_clip_range"] is not None:
        rewards = rewards.clamp(*params["reward_clip_range"])
    if "sequence_kl_sum" in case["inputs"]:
        rewards = rewards - params["beta"] * rows_of(case, "sequence_kl_sum")
    scale = "batch_centered" if params["normalize_advantages"] else "none"
    adv = one(rewards, params["num_generations"], baseline="leave_one_out", scale=scale)
    golden.check({"advantages": adv}, case)


@checks("swift.adv.grpo.batch", "swift.adv.rloo.group")
def swift(case: Case) -> None:
    baseline = "group" if case["params"]["advantage_estimator"] == "grpo" else "leave_one_out"
    adv = several(case, combine="sum", baseline=baseline, scale=case["params"]["scale_rewards"])
    golden.check({"advantages": adv}, case, skip=("rewards",))


@checks("swift.adv.reinforce_plus_plus.batch")
def swift_reinforce(case: Case) -> None:
    weights = torch.tensor(case["params"]["reward_weights"], dtype=torch.float64)
    total = rows_of(case, "rewards_per_func") @ weights - case["params"]["beta"] * rows_of(case, "kl_values")
    adv = one(total, case["params"]["num_generations"], scale="batch_centered")
    golden.check({"advantages": adv, "rewards": total}, case)


@checks("areal.normalization")
def areal(case: Case) -> None:
    """Decisions are compared as samples are, those of a group's rows among each other."""
    params, x = case["params"], rows_of(case, "x")
    mask = (
        golden.tensor(case["inputs"]["loss_mask"]).bool() if "loss_mask" in case["inputs"] else torch.ones_like(x) > 0
    )
    group = (torch.arange(len(x)) // params["group_size"]).reshape(-1, *[1] * (x.ndim - 1)).expand_as(x)[mask]
    level = params["mean_level"]
    if params["mean_leave1out"]:
        baseline, group = "leave_one_out", group if level == "group" else torch.zeros_like(group)
    else:
        baseline = level or "none"
    scales = {None: "none", "group": "rms_group", "batch": "rms_batch"}
    options = dict(baseline=baseline, scale=scales[params["std_level"]], eps=params["eps"], clip=None)
    adv = advantages({"r": x[mask]}, group, weights={"r": 1.0}, unbiased=params["std_unbiased"], **options)
    golden.check({"normalized": torch.zeros(x.shape).masked_scatter(mask, adv)}, case)


@checks("roll.reward_norm", "roll.group_reward_norm")
def roll(case: Case) -> None:
    params = case["params"]
    options = dict(baseline=params.get("norm_mean_type", "group"), scale=params.get("norm_std_type", "batch_centered"))
    golden.check({"normalized": one(rows_of(case), params["n_sample"], eps=1e-6, **options)}, case)


@checks("passk.advantage")
def pass_at_k(case: Case) -> None:
    rewards = rows_of(case)
    adv = one(rewards, len(rewards), baseline="pass_at_k", k=case["params"]["k"])
    golden.check({"advantages": adv}, case)


@checks("opmd.advantage")
def opmd(case: Case) -> None:
    params = case["params"]
    options = dict(baseline="group") if params["opmd_baseline"] == "mean" else dict(baseline="log_mean_exp")
    adv = one(rows_of(case), params["num_generations"], scale="none", tau=params["tau"], **options)
    golden.check({"advantages": adv}, case)


@checks("verl_omni.adv.flow_grpo")
def verl_omni(case: Case) -> None:
    rewards, params = rows_of(case, "sample_level_rewards"), case["params"]
    rewards = rewards if rewards.ndim == 1 else rewards.sum(1)
    names = sorted(set(case["inputs"]["index"]))
    group = torch.tensor([names.index(name) for name in case["inputs"]["index"]])
    scale = ("batch" if params["global_std"] else "group") if params["norm_adv_by_std_in_grpo"] else "none"
    options = dict(scale=scale, unbiased=True, eps=params["epsilon"], clip=None)
    adv = advantages({"r": rewards}, group, weights={"r": 1.0}, **options)
    golden.check({"advantages": adv[:, None]}, case)


OF_VERL: dict[str, dict[str, Any]] = {
    "verl.adv.opo": dict(baseline="length_weighted", scale="none"),
    "verl.adv.grpo_passk": dict(baseline="second_best", eps=1e-6),
    "verl.adv.gpg": dict(scale="nonzero"),
    "verl.adv.reinforce_plus_plus_baseline": dict(scale="whiten_by_length"),
}


@checks(*OF_VERL)
def verl(case: Case) -> None:
    mask = golden.tensor(case["inputs"]["response_mask"]).double()
    rewards = rows_of(case, "token_level_rewards").sum(1)
    names = sorted(set(case["inputs"]["index"]))
    group = torch.tensor([names.index(name) for name in case["inputs"]["index"]])
    options = OF_VERL[golden.kind(case)] | dict(unbiased=True, lengths=mask.sum(1), clip=None)
    if not case["params"].get("norm_adv_by_std_in_grpo", True):
        options["scale"] = "none"
    spread = advantages({"r": rewards}, group, weights={"r": 1.0}, **options)[:, None] * mask
    golden.check({"advantages": spread, "returns": spread}, case)


def groups_of(case: Case) -> Tensor:
    names = sorted(set(case["inputs"]["index"]))
    return torch.tensor([names.index(name) for name in case["inputs"]["index"]])


def against(found: dict[str, Tensor], case: Case, mask: Tensor) -> None:
    """Where the reference leaves other numbers at masked decisions, ours takes them over."""
    if case.get("compare"):
        stored = {name: golden.tensor(value, torch.float64) for name, value in case["outputs"].items()}
        found = {n: v if v.shape != mask.shape else v.where(mask.bool(), stored[n]) for n, v in found.items()}
    golden.check(found, case)


@checks("verl.adv.gae", "ragen.adv.bi_level_gae", "composed.decoupled_gae", "composed.decoupled_gae_length_adaptive")
def of_values(case: Case) -> None:
    params, rewards, values = case["params"], rows_of(case, "token_level_rewards"), rows_of(case, "values")
    mask, more = golden.tensor(case["inputs"].get("response_mask") or case["inputs"]["loss_mask"]), {}
    if golden.kind(case) == "ragen.adv.bi_level_gae":
        options = dict(gamma=params["gamma"], lam=params["lam"], turn_gamma=params["high_level_gamma"])
        found = two_level(rewards, mask, values, rewards != 0, **options)
    else:
        lam = params.get("lam", params.get("lam_actor"))
        if "alpha" in params:
            more = {"lambda_actor": lambda_by_length(mask, params["alpha"])}
            lam = more["lambda_actor"]
        found = gae(rewards, mask, values, gamma=params["gamma"], lam=lam, lam_critic=params.get("lam_critic"))
    against({"advantages": whiten(found.adv, mask), "returns": found.returns} | more, case, mask)


@checks("openrlhf.adv.gae", "openrlhf.adv.reinforce")
def openrlhf(case: Case) -> None:
    params, mask = case["params"], golden.tensor(case["inputs"]["action_mask"])
    old, reference = rows_of(case, "old_log_prob"), rows_of(case, "ref_log_prob")
    kl = penalty(params.get("kl_estimator", "k1"), old, reference, mask=mask).clamp(-10, 10)
    rewards = at_last(rows_of(case), mask) - params["kl_coef"] * kl
    if "lambd" in params:
        found = gae(rewards, mask, rows_of(case, "values"), gamma=params["gamma"], lam=params["lambd"])
        adv, returns = found
    else:
        adv = returns = reward_to_go(rewards, mask, gamma=params["gamma"])
    against({"token_rewards": rewards, "advantages": adv, "returns": returns}, case, mask)


@checks("verl.adv.reinforce_plus_plus", "verl.adv.remax")
def to_go(case: Case) -> None:
    mask, rewards = golden.tensor(case["inputs"]["response_mask"]), rows_of(case, "token_level_rewards")
    if golden.kind(case) == "verl.adv.remax":
        returns = reward_to_go(rewards * mask, torch.ones_like(mask))
        adv = (returns - rows_of(case, "reward_baselines")[:, None]) * mask
    else:
        gamma = case["params"]["gamma"]
        own = reward_to_go(rewards, mask, gamma=gamma, restart=True)
        behind = torch.nn.functional.pad(own[:, 1:], (0, 1))
        adv, returns = whiten(own, mask), rewards + gamma * behind  # which verl stores at masked decisions too
    golden.check({"advantages": adv, "returns": returns}, case)


@checks("verl.adv.optimal_token_baseline", "verl.adv.multi_turn_optimal_token_baseline")
def optimal(case: Case) -> None:
    mask, rewards, params = (
        golden.tensor(case["inputs"]["response_mask"]),
        rows_of(case, "token_level_rewards"),
        case["params"],
    )
    returns = reward_to_go(rewards * mask, torch.ones_like(mask))
    weights = rows_of(case, "rollout_is_weights") if "rollout_is_weights" in case["inputs"] else None
    options = dict(weights=weights, zero_tail=params["handle_zero_tail"], eps=params["epsilon"])
    options["by_column"] = "multi_turn" not in golden.kind(case)
    seen = rows_of(case, "old_log_probs"), rows_of(case, "sum_pi_squared")
    adv = optimal_token(returns, mask, groups_of(case), *seen, **options)
    golden.check({"advantages": adv, "returns": returns}, case)


@checks("vineppo.step_advantages")
def vineppo(case: Case) -> None:
    values = torch.tensor([torch.nan if v is None else v for v in case["inputs"]["mc_values"]], dtype=torch.float64)
    golden.check({"step_advantages": value_differences(rows_of(case, "step_rewards"), values)}, case)


@checks("treepo.adv.tree_rfpp_baseline")
def treepo(case: Case) -> None:
    params, mask = case["params"], golden.tensor(case["inputs"]["response_mask"])
    paths = [name.split("#") for name in case["inputs"]["index"]]
    options = dict(by_size=params["adv_weight_strategy"] == "group_size", skip_tied=params["remove_no_std_subgroup"])
    adv = prefix_average(rows_of(case, "token_level_rewards").sum(1), paths, **options)
    golden.check({"advantages": whiten(adv[:, None] * mask, mask)}, case)


@pytest.mark.parametrize("case", golden.cases(VERL, OTHER, where=lambda case: golden.kind(case) in CHECKS))
def test_published_numbers(case: Case) -> None:
    CHECKS[golden.kind(case)](case)


@pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
def test_every_case_is_checked_or_named_elsewhere() -> None:
    golden.account(
        map(golden.kind, golden.load(OTHER)), ELSEWHERE | {name for name in CHECKS if not name.startswith("verl.")}
    )
