"""Whole walks on an affine velocity against the published numbers in shared/golden/samplers (see its README.md)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import golden
from golden import Case, tensor
from samplers import schedules
from samplers.gaussian import HALF_LOG_TWO_PI
from samplers.renoising import ddim
from samplers.solvers import solver_step
from samplers.tables import Compressed, Shifted
from samplers.transitions import dance_sde, flow_sde, ode


def velocity(case: Case) -> Callable[[Tensor, float], Tensor]:
    a, b, c = (case["params"]["velocity"][name] for name in "abc")
    return lambda x, time: a * x + b * time + c


def mixed_table(params: dict[str, Any]) -> tuple[Tensor, set[int]]:
    """The table of a MixGRPO walk, and the steps that the solver takes."""
    own, window = schedules.shifted(params["num_steps"], params["shift"]), params["window"]
    if params["apply_strategy"] == "all":
        return own, set(range(params["num_steps"]))
    if params["solver_tail"] == "null":
        return own, set()
    after = window[-1] + 1
    table = Compressed(after, schedules.flash_steps(params["num_steps"], after, params["post_compress_ratio"]))
    return table.levels(own), set(range(after, table.num_steps(params["num_steps"])))


@pytest.mark.parametrize("case", golden.cases("samplers/mixgrpo_trajectory.json"))
def test_mixed_walk(case: Case) -> None:
    params, inputs, flow = case["params"], case["inputs"], velocity(case)
    table, solved = mixed_table(params)
    times = schedules.timesteps(table, truncate=True) / 1000
    noises = dict(zip(inputs["noise_steps"], map(tensor, inputs["noise_by_step"]), strict=True))
    dance = case["scheme"].endswith("_dance")
    name = {"midpoint": "dpmpp_2m", "heun": "dpmpp_2m_heun"}.get(params["solver_type"], "euler")
    x, previous = tensor(inputs["initial_sample"]), None
    latents, log_probs = [x], []
    for k, (s, s_next) in enumerate(zip(table.tolist(), table.tolist()[1:], strict=False)):
        v = flow(x, times[k].item())
        x0 = x - s * v
        if k in solved:
            x = solver_step(name if params["solver_order"] == 2 else "euler", x, x0, s, s_next, previous)
        elif k in params["window"]:
            g = (dance_sde if dance else flow_sde)(x, v, s, s_next, noise=params["eta"], s_cap=table[1].item())
            x = g.sample(noises[k])
            dropped = g.std.log() + HALF_LOG_TWO_PI if dance else 0  # its dance step leaves the constants out
            log_probs.append(g.log_prob(x) + dropped)
        else:
            x = ode(x, v, s, s_next).mean
        if k in solved or (k in params["window"] and not dance):  # the source remembers no prediction of other steps
            previous = (x0, s)
        latents.append(x)
    scored = torch.stack(log_probs, 1) if log_probs else torch.zeros(1, 0)
    got = {"final_sample": x, "all_latents": torch.stack(latents), "window_log_probs": scored}
    golden.check(got | {"model_times": times, "num_model_evals": len(times)}, case)
    assert torch.equal(Shifted(params["shift"]).levels(torch.zeros(params["num_steps"] + 1)), tensor(inputs["sigmas"]))


NFT_STEPS = {"flow": flow_sde, "dance": dance_sde, "ddim": ddim}
NFT_SOLVERS = {"dpm1": "euler", "dpm2": "dpmpp_2m"}


@pytest.mark.parametrize("case", golden.cases("samplers/nft_solver.json"))
def test_walk_of_diffusion_nft(case: Case) -> None:
    params, flow, table = case["params"], velocity(case), case["inputs"]["sigmas"]
    x, solver = tensor(case["inputs"]["initial_sample"]), params["solver"]
    noises, previous = map(tensor, case["inputs"].get("noise_by_step", [])), None
    latents, log_probs = [x], []
    for s, s_next in zip(table, table[1:], strict=False):
        v = flow(x, s)
        if solver in NFT_SOLVERS:
            x0 = x - s * v
            x, previous = solver_step(NFT_SOLVERS[solver], x, x0, s, s_next, previous), (x0, s)
        else:
            g = NFT_STEPS[solver](x, v, s, s_next, noise=params["eta"], s_cap=table[1])
            x = g.mean if params["deterministic"] else g.sample(next(noises))
            dropped = g.std.log() + HALF_LOG_TWO_PI if solver == "dance" else 0
            log_probs.append(g.log_prob(x) + dropped)
        latents.append(x)
    got = {"final_sample": x, "all_latents": torch.stack(latents)}
    if log_probs:
        scored = torch.stack(log_probs)
        got |= {"log_probs": scored, "log_probs_all_but_last": scored[:-1]}
    golden.check({name: got[name] for name in case["outputs"]}, case)
