"""Published numbers of a reward that guides a walk."""

import pytest
import torch

import golden
from samplers.guide import guided_velocity


@pytest.mark.parametrize("case", golden.cases("direct/flow_nrg.json"))
def test_noise_guidance(case):
    x = {name: golden.tensor(value, torch.float32) for name, value in case["inputs"].items()}
    params, state = case["params"], x["x_t"].requires_grad_()
    reward = -(state - x["c"]).square().flatten(1).mean(1)
    gradient = torch.autograd.grad(reward.sum(), state)[0]
    v = guided_velocity(x["v"], gradient, params["t"], weight=params["guidance_weight"])
    golden.check({"reward": reward, "grad_reward": gradient, "v_guided": v}, case)


def test_pure_noise_cannot_be_guided():
    with pytest.raises(ValueError, match="second step"):
        guided_velocity(torch.zeros(1, 2), torch.zeros(1, 2), 1.0, weight=1.0)
