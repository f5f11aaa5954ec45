"""Published numbers of GRPO-Guard and of TempFlow-GRPO's weights and loss, through the loop's own path."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import golden
from flowrl.contracts import Batch, LogProbs, Rollout, Samples
from flowrl.core.backward import StepLoss, with_step_weights
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.objectives.step_weights import step_weights
from samplers.gaussian import Gaussian
from samplers.transitions import flow_sde

Case = dict[str, Any]
FILES = ("samplers/grpo_guard.json", "samplers/tempflow.json")
# trees and advantages of single steps are checked where those are made
ELSEWHERE = {"tempflow_branching", "tempflow_per_step_advantages"}


def update(
    objective: ClippedObjective,
    x: dict[str, Tensor],
    step_stats: dict[str, Tensor],
    centred: Tensor | None,
    limit: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of an update on B decisions of one step each, and the metrics [B, 1] of its decisions."""
    rows, rollout_logp = torch.arange(len(x["log_prob"])), x["old_log_prob"][:, None]
    mask = torch.ones_like(rollout_logp, dtype=torch.bool)
    rollout = Rollout(Samples([], rows, texts=[]), rollout_logp, mask, None, step_stats=step_stats)
    adv = with_step_weights(x["advantages"].clamp(-limit, limit), objective, rollout, rows)
    score = LogProbs(rows, torch.arange(1), x["log_prob"][:, None], centred=centred)
    loss = StepLoss(rollout, adv, objective, objective.weights(mask), weights(mask))
    value = loss(score)
    return value, objective(score, Batch(rollout_logp, x["advantages"], mask, step_stats=step_stats))[1]


def floats(case: Case) -> dict[str, Tensor]:
    return {name: golden.tensor(value, torch.float64) for name, value in case["inputs"].items()}


def guard(case: Case) -> None:
    """Ours is the drift of each sample, as in verl-omni and Flow-Factory, over |dt| of each sample.

    flow_grpo takes the mean drift of the batch for all samples, which the difference of the two is added for here.
    verl-omni divides by the mean of sqrt|dt| squared and Flow-Factory makes an outer product of samples and samples:
    neither differs where all rows are of one step, as they are in every case. Flow-Factory does not divide by |dt|.
    """
    x, scheme, params = floats(case), case["scheme"], case["params"]
    std = (x["std_dev_t"] * x["sqrt_dt"])[:, None]
    mean, old = x["prev_sample_mean"], x["old_prev_sample_mean"]
    gaussian = Gaussian(mean, std.reshape(-1, *(1,) * (mean.dim() - 1)))
    drawn = Gaussian(old, gaussian.std).sample(x["noise"])
    total, count = gaussian.centred_sums(old, drawn)
    centred = (total / count)[:, None]
    if scheme == "grpo_guard_flow_grpo":
        drift = gaussian.kl(Gaussian(old, gaussian.std))[:, None]
        centred = centred + drift.mean() - drift
    clip, weight = params["clip_range"], "none" if scheme == "grpo_guard_flow_factory" else "inverse_dt"
    objective = ClippedObjective(clip, clip, ratio="centred", weight=weight)
    step_stats = {"std": std, "dt": -x["sqrt_dt"].square()[:, None]}
    loss, metrics = update(objective, x, step_stats, centred, params["adv_clip_max"])
    got = {"loss": loss, "ratio": metrics["ratio"][:, 0]}
    if "ratio_mean" in case["outputs"]:
        got["ratio_mean"] = metrics["ratio"].mean()
    golden.check(got, case)


def noise_weights(case: Case) -> None:
    """The published constants are rounded means; ours is the mean. Two rows: their number has no say."""
    params, sigmas = case["params"], golden.tensor(case["inputs"]["sigmas"], torch.float64)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    levels = [(float(s), float(n)) for s, n in zip(sigmas[:-1], sigmas[1:], strict=True)]
    steps = [flow_sde(zero, zero, s, n, noise=params["noise_level"], s_cap=float(sigmas[1])) for s, n in levels]
    std = torch.stack([torch.as_tensor(g.std).double().flatten()[0] for g in steps[: params["num_trained_steps"]]])
    factor = step_weights("noise", torch.ones(2, len(std), dtype=torch.bool), {"std": std.repeat(2, 1)})
    assert factor is not None
    constant = float(factor[1, 0] / std[0])
    published = params["published_constant"]
    got = {"step_std": std, "normalising_constant": constant, "weights_mean_one": factor[0]}
    got["weights_published"] = None if published is None else factor[0] * published / constant
    golden.check(got, case)


def policy_loss(case: Case) -> None:
    """The published constant over ours, 1 / mean(std), is a factor of the whole loss."""
    x, params = floats(case), case["params"]
    objective = ClippedObjective(params["clip_range"], params["clip_range"], weight="noise")
    loss, metrics = update(objective, x, {"std": x["step_std"][:, None]}, None, params["adv_clip_max"])
    factor = params["constant"] * x["step_std"].mean()
    golden.check({"loss": loss * factor, "ratio": metrics["ratio"][:, 0]}, case)


CHECKS: dict[str, Callable[[Case], None]] = {
    "grpo_guard_flow_grpo": guard,
    "grpo_guard_verl_omni": guard,
    "grpo_guard_flow_factory": guard,
    "tempflow_noise_weights": noise_weights,
    "tempflow_policy_loss": policy_loss,
}


@pytest.mark.parametrize("case", golden.cases(*FILES, where=lambda case: case["scheme"] in CHECKS))
def test_published_numbers(case: Case) -> None:
    CHECKS[case["scheme"]](case)


@pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
def test_every_case_is_checked_here_or_elsewhere() -> None:
    golden.account((golden.kind(case) for path in FILES for case in golden.load(path)), set(CHECKS) | ELSEWHERE)
