"""Every preset reproduces its golden cases through the loop's own path: recipe values, objective, weights, backward."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import golden
from flowrl.build import build_objective
from flowrl.contracts import LogProbs, Policy, Rollout, Samples, View
from flowrl.core.advantages.combined import advantages
from flowrl.core.backward import StepLoss, backward
from flowrl.core.objectives.aggregate import weights
from flowrl.recipe.presets import DENOISING, LANGUAGE, Values
from flowrl.recipe.schema import Advantage, ObjectiveKeys, Recipe

Case = dict[str, Any]
TRL, VERL, OTHER = (f"objectives/llm_policy_loss_{name}.json" for name in ("trl", "verl", "other"))
ADV = ("objectives/llm_advantage_verl.json", "objectives/llm_advantage_other.json")
# (method, what its parameters say) of the cases of a preset's loss, and how many the shared set has; clip, dual, kl and
# length come from the case where they differ from the preset's
Kind = tuple[str, dict[str, Any]]
LOSSES: dict[str, tuple[int, list[Kind]]] = {
    "grpo": (
        6,
        [
            ("trl.grpo", {"importance_sampling_level": "token"}),
            ("verl.vanilla", {"loss_agg_mode": "seq-mean-token-mean"}),
            ("openrlhf.policy_loss.ppo", {"token_level_loss": False}),
        ],
    ),
    "dapo": (
        8,
        [
            ("trl.bnpo", {"importance_sampling_level": "token"}),
            ("trl.dapo", {"importance_sampling_level": "token"}),
            ("verl.vanilla", {"loss_agg_mode": "token-mean"}),
            ("openrlhf.policy_loss.ppo", {"token_level_loss": True}),
        ],
    ),
    "dr_grpo": (1, [("trl.dr_grpo", {"importance_sampling_level": "token"})]),
    "gspo": (
        4,
        [
            ("trl.grpo", {"importance_sampling_level": "sequence"}),
            ("trl.gspo_token", {}),
            ("verl.gspo", {}),
            ("openrlhf.policy_loss.gspo", {}),
        ],
    ),
    "rloo": (1, [("trl.rloo_loss", {})]),
    "cispo": (3, [("trl.cispo", {}), ("verl.cispo", {"loss_agg_mode": "token-mean"})]),
    "sapo": (3, [("trl.sapo", {}), ("verl.sapo", {})]),
    "gmpo": (3, [("trl.gmpo", {}), ("verl.geo_mean", {})]),
    "vespo": (1, [("trl.vespo", {})]),
}
# Parameters that add to a loss what no preset has, unless they are off.
EXTRAS = ("use_bias_correction_kl", "entropy_coef", "use_vllm_is", "off_policy_mask_threshold", "top_entropy_quantile")
EXTRAS += ("global_batch_info", "enable_vllm_is_correction")
LEVELS = {"trl.gspo_token": "seq_token", "verl.gspo": "seq_token"}  # GSPO-token: the same gradient where A is the row's

NUMBERS = {
    "tau_pos": ("tau_pos", "sapo_temperature_pos"),
    "tau_neg": ("tau_neg", "sapo_temperature_neg"),
    "k_pos": ("vespo_k_pos",),
    "lambda_pos": ("vespo_lambda_pos",),
    "k_neg": ("vespo_k_neg",),
    "lambda_neg": ("vespo_lambda_neg",),
}


class Table:
    """A policy whose parameters are its log-probs, handed over as whole rows or column by column."""

    def __init__(self, logp: Tensor, whole_rows: bool):
        self.logp, self.whole_rows = nn.Parameter(logp), whole_rows

    def look(self, rollout: Rollout, rows: Tensor, view: View, visit: Callable, **_: object) -> None:
        for columns in torch.arange(self.logp.shape[1]).split(self.logp.shape[1] if self.whole_rows else 1):
            visit(LogProbs(rows, columns, self.logp[rows][:, columns]))

    def trainable(self) -> Iterator[nn.Parameter]:
        yield self.logp


def given(case: Case) -> dict[str, Any]:
    """The keys of an objective that a case sets."""
    params, name = case["params"], case["method"]
    if name.endswith((".sapo", ".vespo")):  # no clip
        numbers = {key: next((params[k] for k in names if k in params), None) for key, names in NUMBERS.items()}
        return {key: value for key, value in numbers.items() if value is not None}
    if name == "trl.cispo":  # the limit of the ratio itself
        return {"clip": [1.0, params["epsilon_high"] - 1], "kl": params["beta"]}
    low = next(params[k] for k in ("epsilon", "clip_ratio_low", "clip_eps_low", "clip_ratio") if k in params)
    high = next(params[k] for k in ("epsilon_high", "clip_ratio_high", "clip_eps_high", "clip_ratio") if k in params)
    dual = next((params[k] for k in ("delta", "clip_ratio_c", "dual_clip") if k in params), None)
    found = {"clip": [low, high], "dual": dual, "kl": params.get("beta", 0.0)}
    found |= {"level": LEVELS[name]} if name in LEVELS else {}
    return found | ({"length": params["max_completion_length"]} if name == "trl.dr_grpo" else {})


def run(preset: Values, case: Case, *, whole_rows: bool, micro: int) -> dict[str, Tensor]:
    """Loss and its gradient in the log-probs, as an optimizer step of the loop accumulates them."""
    x = {name: golden.tensor(value, torch.float32) for name, value in case["inputs"].items()}
    mask = next((x[k] for k in ("completion_mask", "response_mask") if k in x), torch.ones_like(x["log_prob"]))
    mask = (mask * x.get("tool_mask", 1.0)).bool()
    values = preset["objective"] | given(case)
    objective = build_objective(Recipe.model_construct(objective=ObjectiveKeys(**values)))
    samples = Samples([], torch.arange(len(mask)), texts=[""] * len(mask))
    rollout = Rollout(samples, x["old_log_prob"], mask, None, reference=x.get("ref_log_prob"))
    adv = x["advantages"] if x["advantages"].ndim == 1 else x["advantages"][:, 0]
    limit = case["params"].get("adv_clip_max", torch.inf)
    loss = StepLoss(rollout, adv.clamp(-limit, limit), objective, objective.weights(mask), weights(mask))
    policy = Table(x["log_prob"], whole_rows)
    for rows in torch.arange(len(mask)).split(micro):
        backward(cast(Policy, policy), rows, loss)
    assert policy.logp.grad is not None
    return {"loss": loss.total["loss"], "grad": policy.logp.grad}


def picked(*files: str, where: Callable[[Case], bool]) -> list[Case]:
    """The cases that satisfy `where`; skips, with the reason, where there are none to be had."""
    found = golden.cases(*files, where=where)
    for parameter in found:
        for mark in parameter.marks:
            pytest.skip(mark.kwargs["reason"])
    return [parameter.values[0] for parameter in found]


def is_of(case: Case, kinds: list[Kind]) -> bool:
    params = case["params"]
    return any(case["method"] == name and wanted.items() <= params.items() for name, wanted in kinds)


def is_plain(case: Case) -> bool:
    """Whether a loss is made of what the loop has: an advantage a row, and no term or weight besides."""
    inputs, adv = case["inputs"], golden.tensor(case["inputs"]["advantages"])
    if any(case["params"].get(name) for name in EXTRAS) or "rollout_is_weights" in inputs:
        return False
    if case["method"].startswith("trl.") and case["method"] not in ("trl.bnpo", "trl.dapo") and not has_rows(inputs):
        return False  # TRL counts a row without tokens among those it divides by
    return adv.ndim == 1 or bool((adv == adv[:, :1]).all())


def has_rows(inputs: dict[str, Any]) -> bool:
    """Whether every row has a token."""
    return bool(golden.tensor(inputs["completion_mask"]).bool().any(1).all())


def losses(preset: str, *files: str) -> list[Case]:
    return picked(*(files or (TRL, VERL, OTHER)), where=lambda case: is_of(case, LOSSES[preset][1]) and is_plain(case))


CUTS = pytest.mark.parametrize(("whole_rows", "micro"), [(True, 99), (True, 1), (False, 99), (False, 2)])


@CUTS
@pytest.mark.parametrize("preset", LOSSES)
def test_losses_of_tokens_are_the_published_ones(preset: str, whole_rows: bool, micro: int):
    cases = losses(preset)
    assert golden.OTHER or len(cases) == LOSSES[preset][0]
    for case in cases:
        got = run(LANGUAGE[preset], case, whole_rows=whole_rows, micro=micro)
        golden.check(got, case, skip=("ppo_kl", "pg_clipfrac", "pg_clipfrac_lower", "clip_ratio"))


@CUTS
@pytest.mark.parametrize("case", golden.cases(OTHER, where=lambda c: c["method"] == "verl_omni.flow_grpo_loss"))
def test_losses_of_steps_are_the_published_ones(case: Case, whole_rows: bool, micro: int):
    golden.check(run(DENOISING["grpo"], case, whole_rows=whole_rows, micro=micro), case)


@pytest.mark.parametrize(("preset", "file"), [("gspo", TRL), ("gspo", VERL), ("dapo", TRL)])
def test_the_published_clips_of_gspo_and_dapo_are_those_of_the_presets(preset: str, file: str):
    clip = LANGUAGE[preset]["objective"]["clip"]
    clips = [given(case)["clip"] for case in losses(preset, file)]
    if golden.OTHER and clip not in clips:
        pytest.skip(f"{golden.ROOT}/{file} has no case of {preset} with the published clip, only {clips}")
    assert clip in clips


# ---- advantages

ADVANTAGES: dict[str, tuple[int, list[Kind]]] = {
    "grpo": (2, [("trl.adv.sum_then_normalize.group", {})]),
    "gspo": (2, [("trl.adv.sum_then_normalize.group", {})]),
    "dapo": (3, [("verl.adv.grpo", {"norm_adv_by_std_in_grpo": True})]),
    "dr_grpo": (2, [("trl.adv.sum_then_normalize.none", {}), ("verl.adv.grpo", {"norm_adv_by_std_in_grpo": False})]),
    "rloo": (2, [("trl.adv.rloo", {"normalize_advantages": False, "beta": 0.0}), ("verl.adv.rloo_vectorized", {})]),
}


def has_groups(case: Case) -> bool:
    """Whether no group is a single row: verl's GRPO then keeps the raw reward, which is no advantage."""
    labels = case["inputs"].get("index", [])
    return case["method"] != "verl.adv.grpo" or all(labels.count(label) > 1 for label in labels)


def is_unclipped(case: Case) -> bool:
    return case["params"].get("reward_clip_range") is None


def rewards_of(case: Case) -> tuple[dict[str, Tensor], dict[str, float], Tensor]:
    """(rewards, weights, groups)."""
    inputs, params = case["inputs"], case["params"]
    if "token_level_rewards" in inputs:
        total = golden.tensor(inputs["token_level_rewards"], torch.float32).sum(1)
        names = sorted(set(inputs["index"]))
        return {"r": total}, {"r": 1.0}, torch.tensor([names.index(name) for name in inputs["index"]])
    columns = golden.tensor(inputs.get("rewards_per_func") or [[r] for r in inputs["rewards"]], torch.float32).unbind(1)
    rewards = {str(i): column for i, column in enumerate(columns)}
    group = torch.arange(len(columns[0])) // params["num_generations"]
    return rewards, {str(i): w for i, w in enumerate(params.get("reward_weights", [1.0]))}, group


@pytest.mark.parametrize("preset", ADVANTAGES)
def test_advantages_of_tokens_are_the_published_ones(preset: str):
    count, kinds = ADVANTAGES[preset]
    cases = picked(*ADV, where=lambda case: is_of(case, kinds) and has_groups(case) and is_unclipped(case))
    assert golden.OTHER or len(cases) == count
    for case in cases:
        rewards, weight, group = rewards_of(case)
        how = Advantage(**LANGUAGE[preset]["advantage"]).model_dump(exclude={"credit", "early"})
        adv = advantages(rewards, group, weights=weight, **how)
        if "response_mask" in case["inputs"]:
            spread = adv[:, None] * golden.tensor(case["inputs"]["response_mask"])
            golden.check({"advantages": spread, "returns": spread}, case)
        else:
            golden.check({"advantages": adv}, case)


@pytest.mark.parametrize(
    "case", golden.cases("samplers/advantages.json", where=lambda c: c["scheme"] == "mixgrpo_multi_reward")
)
def test_advantages_of_mixgrpo_are_the_published_ones(case: Case):
    rewards = {name: golden.tensor(value, torch.float32) for name, value in case["inputs"]["rewards"].items()}
    group = torch.arange(len(next(iter(rewards.values())))) // case["params"]["num_generations"]
    options = Advantage(**DENOISING["mixgrpo"]["advantage"]).model_dump(exclude={"credit", "early"})
    adv = advantages(rewards, group, weights=case["params"]["normalised_weights"], **options)
    golden.check({"advantages_advantage_space": adv}, case, skip=("advantages_reward_space",))
