"""samplers/ against closed forms on Gaussian data, in shared/golden/samplers (its README.md explains the fields)."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import golden
from golden import Case, tensor
from samplers import schedules
from samplers.renoising import cps, ddim
from samplers.solvers import solver_step
from samplers.transitions import dance_sde, flow_sde, ode

SCHEMES = {
    "gaussian_moments_ode": ode,
    "gaussian_moments_flow_sde": flow_sde,
    "gaussian_moments_dance_sde": dance_sde,
    "gaussian_moments_cps": cps,
    "gaussian_moments_ddim_eta": ddim,
}


def cases(*schemes: str) -> list:
    return golden.cases("samplers/gaussian_truth.json", where=lambda case: case["scheme"] in schemes)


@pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
def test_every_kind_is_checked() -> None:
    kinds = {"gaussian_field", "gaussian_exact_ode_map", "gaussian_convergence", "gaussian_convergence_interior"}
    golden.account(map(golden.kind, golden.load("samplers/gaussian_truth.json")), kinds)


@pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
def test_moments_of_every_kind_are_checked() -> None:
    golden.account(map(golden.kind, golden.load("samplers/gaussian_moments.json")), SCHEMES)


def marginal(s: Any, mu: float, s0: float) -> tuple[Any, Any]:
    return (1 - s) * mu, (1 - s) ** 2 * s0**2 + s**2


def field(x: Tensor, s: Any, mu: float, s0: float) -> Tensor:
    """The exact velocity for data N(mu, s0^2)."""
    mean, variance = marginal(s, mu, s0)
    return -mu + (s - (1 - s) * s0**2) / variance * (x - mean)


def data(case: Case) -> tuple[float, float]:
    return case["params"]["mu"], case["params"]["s"]


@pytest.mark.parametrize("case", cases("gaussian_field"))
def test_field_and_the_score_inside_the_step(case: Case) -> None:
    s = tensor(case["inputs"]["sigmas"], torch.float64)[:, None]
    x = tensor(case["inputs"]["x"], torch.float64).expand(len(s), -1)
    v, s_next = field(x, s, *data(case)), 0.5 * s
    x0 = ode(x, v, s, 0 * s).mean
    # The stochastic step differs from Euler's by (g^2 / 2) score |dt| with g^2 |dt| = std^2.
    drawn = flow_sde(x, v, s, s_next, noise=0.7, s_cap=0.95)
    score = (drawn.mean - ode(x, v, s, s_next).mean) / (0.5 * drawn.std.square())
    mean, variance = (part.flatten() for part in marginal(s, *data(case)))
    got = {"marginal_mean": mean, "marginal_var": variance, "velocity": v, "score": score}
    golden.check(got | {"x0_mean": x0, "eps_mean": x0 + v}, case)


def solve(name: str, x: Tensor, table: Tensor, mu: float, s0: float) -> Tensor:
    previous = None
    for s, s_next in zip(table.tolist(), table.tolist()[1:], strict=False):
        x0 = x - s * field(x, s, mu, s0)
        x, previous = solver_step(name, x, x0, s, s_next, previous), (x0, s)
    return x


def euler(x: Tensor, table: Tensor, mu: float, s0: float) -> Tensor:
    for s, s_next in zip(table.tolist(), table.tolist()[1:], strict=False):
        x = ode(x, field(x, s, mu, s0), s, s_next).mean
    return x


@pytest.mark.parametrize("case", cases("gaussian_exact_ode_map"))
def test_exact_map(case: Case) -> None:
    x, mapped = tensor(case["inputs"]["x"], torch.float64), []
    for start, end in case["inputs"]["sigma_pairs"]:
        (mean, variance), (mean_end, variance_end) = marginal(start, *data(case)), marginal(end, *data(case))
        mapped.append(mean_end + math.sqrt(variance_end / variance) * (x - mean))
        walked = euler(x, torch.linspace(start, end, 4097, dtype=torch.float64), *data(case))
        torch.testing.assert_close(walked, mapped[-1], atol=1e-3, rtol=0)
    golden.check({"x_after": torch.stack(mapped)}, case)


def convergence_table(params: dict[str, Any], num_steps: int) -> Tensor:
    if "schedule" in params:
        return schedules.shift_time(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), params["shift"])
    ends = torch.tensor([params["sigma_start"], params["sigma_end"]], dtype=torch.float64)
    if params["grid"] == "linear":
        return torch.linspace(*ends.tolist(), num_steps + 1, dtype=torch.float64)
    # uniform in lambda = log((1 - s) / s)
    return torch.sigmoid(-torch.linspace(*(-ends.logit()).tolist(), num_steps + 1, dtype=torch.float64))


@pytest.mark.parametrize("case", cases("gaussian_convergence", "gaussian_convergence_interior"))
def test_convergence(case: Case) -> None:
    x, params = tensor(case["inputs"]["x_init"], torch.float64), case["params"]
    tables = [convergence_table(params, num_steps) for num_steps in params["num_steps"]]
    (mean, variance), (mean_end, variance_end) = (marginal(tables[0][at].item(), *data(case)) for at in (0, -1))
    exact = mean_end + math.sqrt(variance_end / variance) * (x - mean)
    walks = {
        "euler": lambda table: euler(x, table, *data(case)),
        "dpmpp_1": lambda table: solve("euler", x, table, *data(case)),
        "dpmpp_2m": lambda table: solve("dpmpp_2m", x, table, *data(case)),
    }
    got: dict[str, Any] = {"exact": exact}
    for name in sorted(case["outputs"].keys() & walks.keys()):
        final = torch.stack([walks[name](table) for table in tables])
        error = (final - exact).abs().amax(1)
        got[name] = {"final": final, "max_error": error, "observed_order": (error[:-1] / error[1:]).log2()}
    golden.check(got, case)
    assert got["euler"]["observed_order"][-1].item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "case", golden.cases("samplers/gaussian_moments.json", where=lambda case: case["scheme"] in SCHEMES)
)
def test_moments(case: Case) -> None:
    params, table = case["params"], case["inputs"]["sigmas"]
    stochastic = range(len(table) - 1) if params["sde_window"] is None else params["sde_window"]
    probes = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    means, variances, stds = [0.0], [1.0], []
    for k, (s, s_next) in enumerate(zip(table, table[1:], strict=False)):
        step = SCHEMES[case["scheme"]] if k in stochastic else ode
        v = field(probes, s, *data(case))
        out = step(probes, v, s, s_next, noise=params["noise_level"], s_cap=table[1])
        shift, slope = out.mean[0].item(), (out.mean[1] - out.mean[0]).item()
        stds.append(out.std.item())
        means.append(slope * means[-1] + shift)
        variances.append(slope**2 * variances[-1] + stds[-1] ** 2)
    true_mean, true_variance = marginal(tensor(table, torch.float64), *data(case))
    got = {"mean": means, "var": variances, "step_std": stds, "true_mean": true_mean, "true_var": true_variance}
    golden.check(got, case)
