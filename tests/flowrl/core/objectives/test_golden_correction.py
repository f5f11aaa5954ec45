"""Published numbers of corrections between who samples and who trains, by verl, TRL, slime, OpenRLHF and AReaL."""

from typing import Any

import pytest
import torch
from torch import Tensor

import golden
from flowrl.core.objectives.clipped import difference
from flowrl.core.objectives.correction import Correction, Rejection, weights_of
from flowrl.core.objectives.mismatch import mismatch, spread_of_weights

Case = dict[str, Any]
FILE, OTHER = "objectives/llm_rollout_correction.json", "objectives/llm_policy_loss_other.json"
KNOWN = {
    "verl.rollout_is_weights",
    "verl.rollout_rejection_mask",
    "verl.offpolicy_metrics",
    "trl.vllm_importance_ratio",
    "slime.mis_weights",
    "slime.tis",
    "slime.icepop",
}
LEVELS = {"token": "token", "sequence": "seq_sum", "geometric": "seq_mean"}


def of(*names: str, file: str = FILE) -> list:
    return golden.cases(file, where=lambda case: golden.kind(case) in names)


def floats(case: Case) -> dict[str, Tensor]:
    return {name: golden.tensor(value, torch.float64) for name, value in case["inputs"].items()}


@pytest.mark.parametrize("case", of("verl.rollout_is_weights"))
def test_weights_of_verl(case: Case):
    x, params = floats(case), case["params"]
    level, high = LEVELS[params["rollout_is"]], params["rollout_is_threshold"]
    old, rollout, mask = x["old_log_prob"], x["rollout_log_prob"], x["response_mask"].bool()
    normalise = params.get("rollout_is_batch_normalize", False)
    raw = Correction("tis", high=high, level=level)(old, rollout, mask).weight
    got = Correction("tis", high=high, level=level, normalise=normalise)(old, rollout, mask).weight
    spread = spread_of_weights(difference(old, rollout, mask), mask, level, high)
    names = {"ess": "eff_sample_size", "mean": "mean", "max": "max", "min": "min", "above": "ratio_fraction_high"}
    metrics = {f"rollout_is_{names[name]}": value for name, value in spread.items()}
    if normalise:
        metrics["rollout_is_batch_norm_factor"] = (raw.sum() / got.sum()).nan_to_num()
    golden.check({"rollout_is_weights": got, "metrics": metrics}, case)


def rejections(options: str, thresholds: Any) -> tuple[Rejection, ...]:
    """As verl writes them, whose k1 is bounded in the inverse ratio."""
    found = []
    for option, bound in zip(options.split(","), str(thresholds).split(","), strict=True):
        level, _, by = option.strip().rpartition("_")
        low, _, high = bound.rpartition("_")
        if by == "k1":
            low = low or str(1 / float(high))
            found.append(Rejection(by, level, high=1 / float(low), low=1 / float(high)))
        else:
            found.append(Rejection(by, level, high=float(high)))
    return tuple(found)


@pytest.mark.parametrize("case", of("verl.rollout_rejection_mask"))
def test_rejections_of_verl(case: Case):
    x, params = floats(case), case["params"]
    mask = x["response_mask"].bool()
    correction = Correction("none", reject=rejections(params["rollout_rs"], params["rollout_rs_threshold"]))
    result = correction(x["old_log_prob"], x["rollout_log_prob"], mask)
    lost = (mask & ~result.mask).any(1).double().mean()
    got = {"modified_response_mask": result.mask, "masked_fraction": result.metrics["correction/rejected"]}
    golden.check(got | {"seq_masked_fraction": lost}, case)


@pytest.mark.parametrize("case", of("verl.offpolicy_metrics"))
def test_metrics_of_verl(case: Case):
    x = floats(case)
    got = mismatch(x["old_log_prob"], x["rollout_log_prob"], x["response_mask"])
    got["k3_kl"] = got.pop("k3")
    golden.check({name: got[name] for name in case["outputs"]}, case)


@pytest.mark.parametrize("case", of("trl.vllm_importance_ratio"))
def test_weights_of_trl(case: Case):
    x, params = floats(case), case["params"]
    mask = x["completion_mask"].bool()
    level, _, how = params["mode"].partition("_")
    low = 0.0 if params["clip_min"] is None else params["clip_min"]
    high = float("inf") if params["clip_max"] is None else params["clip_max"]
    kind = "tis" if how == "truncate" else "icepop"
    correction = Correction(kind, low, high, LEVELS[level])
    ratio = correction(x["old_log_prob"], x["sampling_log_prob"], mask).weight.where(mask, 1.0)
    if level == "sequence":
        ratio = torch.where(mask.any(1), ratio.gather(1, mask.int().argmax(1)[:, None])[:, 0], 1.0)[:, None]
    golden.check({"importance_sampling_ratio": ratio}, case)


@pytest.mark.parametrize("case", of("slime.mis_weights"))
def test_weights_of_slime(case: Case):
    params = case["params"]
    rows = case["inputs"]["old_log_prob"]
    width = max(map(len, rows))
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]).bool()
    old, rollout = (
        torch.tensor([row + [0.7] * (width - len(row)) for row in case["inputs"][name]], dtype=torch.float64)
        for name in ("old_log_prob", "rollout_log_prob")
    )
    level = LEVELS[params["tis_level"]]
    low, high = params["tis_lower_bound"], params["tis_upper_bound"]
    reject: tuple[Rejection, ...] = ()
    if params["use_rs"]:
        upper = high if params["rs_upper_bound"] is None else params["rs_upper_bound"]
        lower = (1 / high if low is None else low) if params["rs_lower_bound"] is None else params["rs_lower_bound"]
        reject = (Rejection("k1", LEVELS[params["rs_level"]], high=upper, low=lower),)
    kind, bounds = "none", (None, None)
    if params["use_tis"]:
        kind = {"truncate": "tis", "clip": "tis", "mask": "mis"}[params["tis_mode"]]
        bounds = {"truncate": 0.0, "clip": 1 / high if low is None else low, "mask": low}[params["tis_mode"]], high
    correction = Correction(
        kind,
        *bounds,
        level,
        normalise=params["tis_batch_normalize"],
        reject=reject,
        veto=params["rs_veto_threshold"],
    )
    weight, kept, _ = correction(old, rollout, mask)
    got, want = {}, {}
    for name, values in (("weights", weight), ("modified_masks", kept)):
        got[name] = {str(i): row[valid] for i, (row, valid) in enumerate(zip(values, mask, strict=True))}
        want[name] = {str(i): row for i, row in enumerate(case["outputs"][name])}
    golden.check(got, case | {"outputs": want})


@pytest.mark.parametrize("case", of("slime.tis", "slime.icepop"))
def test_losses_of_slime(case: Case):
    x, params = floats(case), case["params"]
    kind = "tis" if golden.kind(case) == "slime.tis" else "icepop"
    correction = Correction(kind, params["tis_clip_low"], params["tis_clip"])
    old, rollout = (x[name][:, None] for name in ("old_log_prob", "rollout_log_prob"))
    mask = torch.ones_like(old, dtype=torch.bool)
    weight = correction(old, rollout, mask).weight
    raw = weights_of(difference(old, rollout, mask), mask, "token")
    got = {"pg_loss": x["pg_loss"] * weight[:, 0], "clipfrac_per_token": (weight != raw).double()[:, 0]}
    golden.check(got, case)


@pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
def test_every_case_is_checked():
    golden.account(map(golden.kind, golden.load(FILE)), KNOWN)
