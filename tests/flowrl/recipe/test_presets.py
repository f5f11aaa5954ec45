"""Every preset reproduces its golden cases through the loop's own path: recipe values, objective, weights, backward."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import golden
from flowrl.build import build_objective
from flowrl.contracts import LogProbs, Policy, Rollout, Samples
from flowrl.core.advantages import advantages
from flowrl.core.backward import StepLoss, backward
from flowrl.core.objectives.aggregate import weights
from flowrl.recipe.presets import DENOISING, LANGUAGE, Values
from flowrl.recipe.schema import Advantage, Objective, Recipe

Case = dict[str, Any]
TRL, VERL = "llm_policy_loss_trl", "llm_policy_loss_verl"
OTHER = "llm_policy_loss_other"
# preset -> the cases of its loss; the case says clip, dual, kl and length where they differ from the preset's
LOSSES: dict[str, list[str]] = {
    "grpo": [f"{TRL}/d000", f"{TRL}/d006", f"{VERL}/d002", f"{VERL}/d007", f"{VERL}/d008", f"{OTHER}/d002"],
    "dapo": [f"{TRL}/d001", f"{TRL}/d003", f"{TRL}/d004", f"{TRL}/d007", f"{VERL}/d000", f"{VERL}/d004"]
    + [f"{OTHER}/d000", f"{OTHER}/d001"],
    "dr_grpo": [f"{TRL}/d002"],
    "gspo": [f"{TRL}/d011", f"{TRL}/d013", f"{VERL}/d011", f"{OTHER}/d003"],
    "rloo": [f"{TRL}/d026"],
}
LEVELS = {"trl.gspo_token": "seq_token", "verl.gspo": "seq_token"}  # GSPO-token: the same gradient where A is the row's


class Table:
    """A policy whose parameters are its log-probs, handed over as whole rows or column by column."""

    def __init__(self, logp: Tensor, whole_rows: bool):
        self.logp, self.whole_rows = nn.Parameter(logp), whole_rows

    def replay(self, rollout: Rollout, rows: Tensor, visit: Callable, *, exact_kl: bool = False, **_: bool) -> None:
        for columns in torch.arange(self.logp.shape[1]).split(self.logp.shape[1] if self.whole_rows else 1):
            visit(LogProbs(rows, columns, self.logp[rows][:, columns]))

    def trainable(self) -> Iterator[nn.Parameter]:
        yield self.logp


def given(case: Case) -> dict[str, Any]:
    """The keys of an objective that a case sets."""
    params, name = case["params"], case["method"]
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
    objective = build_objective(Recipe.model_construct(objective=Objective(**values)))
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


def chosen(preset: str) -> list[Any]:
    files = [f"objectives/{name}.json" for name in (TRL, VERL, OTHER)]
    return golden.cases(*files, where=lambda case: case["id"] in LOSSES[preset])


CUTS = pytest.mark.parametrize(("whole_rows", "micro"), [(True, 99), (True, 1), (False, 99), (False, 2)])


@CUTS
@pytest.mark.parametrize("preset", LOSSES)
def test_losses_of_tokens_are_the_published_ones(preset: str, whole_rows: bool, micro: int):
    cases = [c.values[0] for c in chosen(preset)]
    if cases == [None]:
        pytest.skip(golden.ABSENT)
    assert golden.OTHER or len(cases) == len(LOSSES[preset])
    for case in cases:
        got = run(LANGUAGE[preset], case, whole_rows=whole_rows, micro=micro)
        golden.check(got, case, skip=("ppo_kl", "pg_clipfrac", "pg_clipfrac_lower", "clip_ratio"))


@CUTS
@pytest.mark.parametrize(
    "case", golden.cases(f"objectives/{OTHER}.json", where=lambda c: c["method"] == "verl_omni.flow_grpo_loss")
)
def test_losses_of_steps_are_the_published_ones(case: Case, whole_rows: bool, micro: int):
    golden.check(run(DENOISING["grpo"], case, whole_rows=whole_rows, micro=micro), case)


@pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
def test_the_published_clips_of_gspo_and_dapo_are_those_of_the_presets():
    by_id = {case["id"]: case for name in (TRL, VERL) for case in golden.load(f"objectives/{name}.json")}
    if golden.OTHER and not {f"{TRL}/d011", f"{VERL}/d011", f"{TRL}/d004"} <= by_id.keys():
        pytest.skip(f"{golden.ROOT} calls these cases otherwise")
    for preset, name in (("gspo", f"{TRL}/d011"), ("gspo", f"{VERL}/d011"), ("dapo", f"{TRL}/d004")):
        assert LANGUAGE[preset]["objective"]["clip"] == given(by_id[name])["clip"]


# ---- advantages

ADVANTAGES: dict[str, list[str]] = {
    "grpo": ["llm_advantage_other/d000", "llm_advantage_other/d003"],
    "gspo": ["llm_advantage_other/d000", "llm_advantage_other/d003"],
    "dapo": [f"llm_advantage_verl/d00{i}" for i in (0, 2, 3)],
    "dr_grpo": ["llm_advantage_other/d002", "llm_advantage_verl/d001"],
    "rloo": ["llm_advantage_other/d005", "llm_advantage_verl/d007"],
}


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
    files = [f"objectives/llm_advantage_{name}.json" for name in ("verl", "other")]
    cases = [c.values[0] for c in golden.cases(*files, where=lambda case: case["id"] in ADVANTAGES[preset])]
    if cases == [None]:
        pytest.skip(golden.ABSENT)
    assert golden.OTHER or len(cases) == len(ADVANTAGES[preset])
    for case in cases:
        rewards, weight, group = rewards_of(case)
        adv = advantages(rewards, group, weights=weight, **Advantage(**LANGUAGE[preset]["advantage"]).model_dump())
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
    options = Advantage(**DENOISING["mixgrpo"]["advantage"]).model_dump()
    adv = advantages(rewards, group, weights=case["params"]["normalised_weights"], **options)
    golden.check({"advantages_advantage_space": adv}, case, skip=("advantages_reward_space",))
