"""Published numbers of advantages: TRL, ms-swift, AReaL, ROLL, Pass@k, OPMD, and verl's beyond GRPO and RLOO."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import golden
from flowrl.core.advantages import advantages

Case = dict[str, Any]
VERL, OTHER = (f"objectives/llm_advantage_{name}.json" for name in ("verl", "other"))
# What a formula waits for.
WAITING = {
    "advantages of decisions, normalised": ["areal.normalization loss_mask"],
    "a scale about 0": ["areal.normalization uncentred"],
    "averages over the levels of a tree": ["treepo.adv.tree_rfpp_baseline"],
    "values and their advantages": ["ragen.adv.bi_level_gae", "vineppo.step_advantages", "openrlhf.adv.gae"],
    "values with two decays": ["composed.decoupled_gae", "composed.decoupled_gae_length_adaptive"],
    "a divergence in the rewards of decisions": ["openrlhf.adv.reinforce"],
    "entropy in the advantage": ["edge_grpo.advantage"],
}
LATER = {name for names in WAITING.values() for name in names}
CHECKS: dict[str, Callable[[Case], None]] = {}


def checks(*names: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    def register(function: Callable[[Case], None]) -> Callable[[Case], None]:
        CHECKS.update({name: function for name in names})
        return function

    return register


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
    params = case["params"]
    baseline = "leave_one_out" if params["mean_leave1out"] else params["mean_level"] or "none"
    scales = {None: "none", "group": "group", "batch": "batch_centered"}
    options = dict(baseline=baseline, scale=scales[params["std_level"]], eps=params["eps"])
    golden.check({"normalized": one(rows_of(case, "x"), params["group_size"], **options)}, case)


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


def known(case: Case) -> str:
    """The name by which a case is listed in LATER, otherwise its formula."""
    own = ["uncentred"] if case["params"].get("mean_level", "") is None else []
    names = [f"{golden.kind(case)} {name}" for name in (*case["params"], *case["inputs"], *own)]
    return next((name for name in names if name in LATER), golden.kind(case))


@pytest.mark.parametrize("case", golden.cases(VERL, OTHER, where=lambda case: known(case) in CHECKS))
def test_published_numbers(case: Case) -> None:
    CHECKS[golden.kind(case)](case)


@pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
def test_every_case_is_checked_or_named_as_later() -> None:
    golden.account(map(known, golden.load(OTHER)), LATER | set(CHECKS) - set(OF_VERL))
