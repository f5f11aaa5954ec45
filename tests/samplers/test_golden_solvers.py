"""samplers/solvers against the published numbers in shared/golden/samplers (its README.md explains the fields)."""

import math

import pytest
import torch
from torch import Tensor

import golden
from golden import Case, tensor
from samplers.solvers import dpm_solver


def half_of_the_third_term(history: list[tuple[Tensor, float]], s_next: float, of_noise: bool) -> Tensor:
    """(weight of the second derivative) (second derivative) / 2, written out: what published code leaves out."""
    (m0, s0), (m1, s1), (m2, s2) = history
    l0, l1, l2, end = (math.log((1 - s) / s) for s in (s0, s1, s2, s_next))
    h, gain = (l0 - end, s_next) if of_noise else (end - l0, 1 - s_next)
    weight = gain * (0.5 - (math.exp(-h) - 1 + h) / h**2)
    return weight * h**2 * ((m0 - m1) / (l0 - l1) - (m1 - m2) / (l1 - l2)) / (l0 - l2)


@pytest.mark.parametrize("case", golden.cases("samplers/dpm_solver.json"))
def test_one_update(case: Case) -> None:
    params, inputs, k = case["params"], case["inputs"], case["params"]["step_index"]
    levels = tensor(inputs["sigmas"]).tolist()
    newest_first = [tensor(value) for value in inputs["x0_history_oldest_first"]][::-1]
    history = [(value, levels[k - back]) for back, value in enumerate(newest_first)]
    assert len(history) == params["order"]
    kind = {"heun": params["solver_type"] == "heun", "sde": params["sde"]}
    of_noise = params["algorithm_type"] == "dpmsolver"
    g = dpm_solver(tensor(inputs["sample"]), history, levels[k], levels[k + 1], of_noise=of_noise, **kind)
    mean = g.mean - half_of_the_third_term(history, levels[k + 1], of_noise) if len(history) == 3 else g.mean
    noise = tensor(inputs["noise"]) if params["sde"] else torch.zeros_like(mean)
    got = {"prev_sample": mean + g.std * noise, "prev_sample_mean": mean, "std": g.std}
    golden.check({name: got[name] for name in case["outputs"]}, case)
