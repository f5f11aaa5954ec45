"""Single steps of samplers/ against the published numbers in shared/golden/samplers (its README.md explains them).

An adaptor puts our one Gaussian into the words of each source, its quirks included.
"""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import golden
from golden import Case, tensor
from samplers.gaussian import HALF_LOG_TWO_PI, Gaussian
from samplers.predictions import velocity_from
from samplers.renoising import cps, vp_ddim
from samplers.transitions import dance_sde, flow_sde, ode, wan_sde

FILES = (
    "flow_grpo_sde",
    "flow_grpo_wan_sde",
    "verl_omni_sde",
    "flow_factory_sde",
    "flow_cps",
    "dance_grpo_step",
    "mixgrpo_step",
    "egrpo",
)
PATHS = [f"samplers/{file}.json" for file in FILES]
DDIM = {"ddim_eta_epsilon", "ddim_eta_v_prediction", "ddim_eta_sample"}
STEPS = {
    "flow_grpo_sde": flow_sde,
    "flow_grpo_wan_sde": wan_sde,
    "verl_omni_sde": flow_sde,
    "verl_omni_cps": cps,
    "verl_omni_dance_sde": dance_sde,
    "flow_factory_flow_sde": flow_sde,
    "flow_factory_dance_sde": dance_sde,
    "flow_factory_cps": cps,
    "flow_factory_ode": ode,
    "flow_cps": cps,
    "dance_grpo_sde": dance_sde,
    "dance_grpo_ode": ode,
    "mixgrpo_flow_step": flow_sde,
    "mixgrpo_dance_step": dance_sde,
    "egrpo_merged_step": flow_sde,
}
# Whose std_dev_t is the std of the step; elsewhere it is the diffusion std / sqrt(|dt|).
WHOLE_STD = {"flow_cps", "verl_omni_cps", "flow_factory_cps", "verl_omni_dance_sde"}
# Divides 0 by 0 where a step draws no noise; ours is 0.
GAUSSIANS = {"flow_grpo_sde", "verl_omni_sde", "verl_omni_dance_sde", "flow_factory_flow_sde", "flow_factory_dance_sde"}


def step_levels(case: Case, like: Tensor) -> tuple[Any, Any, float, Any]:
    """s, s_next, s_cap and noise of a one-step case: floats, or [R, 1, ...] where rows differ."""
    params, table = case["params"], tensor(case["inputs"]["sigmas"])
    cap = table[1].item()
    if params.get("sigma_source") == "timestep/1000":
        table = torch.cat([tensor(case["inputs"]["timesteps"]) / 1000, torch.zeros(1)])
    index, length = params["step_index"], params.get("merge_step", 1)
    noise = params.get("noise_level", params.get("eta", 1.0))  # Wan's step has no level: it is ours at 1
    per_row = (-1,) + (1,) * (like.dim() - 1)
    noise = tensor(noise).reshape(per_row) if isinstance(noise, list) else noise
    if isinstance(index, list):
        at = torch.tensor(index)
        return table[at].reshape(per_row), table[at + length].reshape(per_row), cap, noise
    return table[index].item(), table[index + length].item(), cap, noise


def published_log_prob(g: Gaussian, x: Tensor, case: Case) -> Tensor:
    """Our log-prob in the terms of the case."""
    scheme, params = case["scheme"], case["params"]
    std = g.std.flatten().expand(x.shape[0])
    if getattr(STEPS[scheme], "unit_variance", False):
        # the source also scores what lies beside the mean of a step that draws nothing, where ours says 0
        beside = -(x - g.mean).square().flatten(1).mean(1)
        return g.log_prob(x, unit_variance=True) + beside * (std == 0)
    value = g.log_prob(x)
    assert torch.equal(value[std == 0], torch.zeros(int((std == 0).sum())))
    if params.get("include_logprob_normalizer") is False or params.get("log_prob_includes_normalizer") is False:
        value = value + std.log() + HALF_LOG_TWO_PI
    return value.masked_fill(std == 0, math.nan) if scheme in GAUSSIANS else value


def one_step(case: Case) -> dict[str, Any]:
    scheme, params = case["scheme"], case["params"]
    storage = getattr(torch, params.get("latent_dtype", "float32"))
    inputs = {name: tensor(value) for name, value in case["inputs"].items()}
    x, v = inputs["sample"].to(storage), inputs["model_output"]
    s, s_next, s_cap, noise = step_levels(case, x)
    g = STEPS[scheme](x, v, s, s_next, noise=noise, s_cap=s_cap)
    if params.get("mode") in ("ode", "mean"):
        drawn = ode(x, v, s, s_next).mean
    else:
        drawn = (inputs["prev_sample"] if "prev_sample" in inputs else g.sample(inputs["noise"])).to(storage)
    root = torch.as_tensor(s - s_next).sqrt().flatten().expand(x.shape[0])
    std = g.std.flatten().expand(x.shape[0])
    named = std if scheme in WHOLE_STD else std / root
    return {
        "prev_sample": drawn,
        "prev_sample_mean": g.mean,
        "pred_original_sample": ode(x, v, s, 0 * s).mean,
        "std_dev_t": named[: len(case["outputs"].get("std_dev_t", std))],
        "std": std[0],
        "sqrt_dt": root,
        "dt": -root.square(),
        "log_prob": published_log_prob(g, drawn, case),
    }


@pytest.mark.parametrize("case", golden.cases(*PATHS, where=lambda case: case["scheme"] in STEPS))
def test_one_step(case: Case) -> None:
    got = one_step(case)
    golden.check({name: got[name] for name in case["outputs"]}, case)


@pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
def test_every_kind_of_step_is_checked() -> None:
    golden.account((golden.kind(case) for path in PATHS for case in golden.load(path)), STEPS)
    golden.account(map(golden.kind, golden.load("samplers/ddim_eta.json")), DDIM)


@pytest.mark.parametrize("case", golden.cases("samplers/ddim_eta.json", where=lambda case: case["scheme"] in DDIM))
def test_ddim_of_a_ddpm_model(case: Case) -> None:
    inputs = case["inputs"]
    x, output = tensor(inputs["sample"]), tensor(inputs["model_output"])
    kept = [tensor(inputs["alphas_cumprod_at"][name], torch.float64)[:, None, None, None] for name in ("t", "t_prev")]
    s, s_next = ((1 - share).sqrt() for share in kept)
    v = velocity_from(case["params"]["prediction_type"], x, output, s)
    g = vp_ddim(x, v, s, s_next, noise=case["params"]["eta"])
    drawn = tensor(inputs["prev_sample"]) if "prev_sample" in inputs else g.sample(tensor(inputs["noise"]))
    golden.check({"prev_sample": drawn, "log_prob": g.log_prob(drawn), "std": g.std.flatten()}, case)
