"""samplers/ against the published numbers in shared/golden/samplers (its README.md explains the fields)."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import golden
from golden import Case, tensor
from samplers import schedules, windows
from samplers.gaussian import HALF_LOG_TWO_PI, Gaussian
from samplers.transitions import flow_sde, ode

# What each file holds beyond the cases checked here, and why it is not checked. A new case fails the count test below.
CHECKED = {
    "flow_grpo_sde": {"flow_grpo_sde": 14},
    "verl_omni_sde": {"verl_omni_sde": 6},
    "flow_factory_sde": {"flow_factory_flow_sde": 5, "flow_factory_ode": 1},
    "mixgrpo_step": {"mixgrpo_flow_step": 7},
    "schedules": {"flow_match_euler_discrete": 9, "linspace_shifted": 5, "calculate_shift_mu": 4},
    "gaussian_truth": {
        "gaussian_field": 2,
        "gaussian_exact_ode_map": 1,
        "gaussian_convergence": 2,
        "gaussian_convergence_interior": 2,
    },
    "gaussian_moments": {"gaussian_moments_ode": 2, "gaussian_moments_flow_sde": 6},
    "mixgrpo_trajectory": {"mixgrpo_flow": 2},
    "mixgrpo_windows": {"mixgrpo_window_schedule progressive": 5},
    "verl_omni_windows": {"verl_omni_mixgrpo_window progressive": 2, "verl_omni_mixgrpo_window random": 2},
    "flow_factory_steps": {"flow_factory_step_selection": 3},
}
LATER = {
    "verl_omni_sde": {"verl_omni_cps": 4, "verl_omni_dance_sde": 4},
    "flow_factory_sde": {"flow_factory_dance_sde": 4, "flow_factory_cps": 4},
    "mixgrpo_step": {"mixgrpo_dance_step": 3},
    "gaussian_moments": {"gaussian_moments_dance_sde": 2, "gaussian_moments_cps": 3, "gaussian_moments_ddim_eta": 1},
    "mixgrpo_trajectory": {"mixgrpo_dance": 1, "mixgrpo_flash_flow": 4},
    "mixgrpo_windows": {
        "mixgrpo_window_schedule decay": 2,
        "mixgrpo_window_schedule exp_decay": 2,
        "mixgrpo_window_schedule random": 1,  # drawn by numpy's generator, which samplers does not import
    },
    "verl_omni_windows": {"verl_omni_random_window": 2},  # a window a row: our groups share theirs
}


def kind(case: Case) -> str:
    strategy = case["params"].get("sample_strategy")
    return f"{case['scheme']} {strategy}" if strategy else case["scheme"]


def cases(file: str, *kinds: str) -> list:
    wanted = kinds or tuple(CHECKED[file])
    return golden.cases(f"samplers/{file}.json", where=lambda case: kind(case) in wanted)


@pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
@pytest.mark.parametrize("file", CHECKED)
def test_every_case_is_checked_or_named_as_later(file: str) -> None:
    assert Counter(map(kind, golden.load(f"samplers/{file}.json"))) == CHECKED[file] | LATER.get(file, {})


def step_levels(case: Case, like: Tensor) -> tuple[Any, Any, float, Any]:
    """s, s_next, s_cap and noise of a one-step case: floats, or [R, 1, ...] where rows differ."""
    params, table = case["params"], tensor(case["inputs"]["sigmas"])
    cap = table[1].item()
    if params.get("sigma_source") == "timestep/1000":
        table = torch.cat([tensor(case["inputs"]["timesteps"]) / 1000, torch.zeros(1)])
    index, noise = params["step_index"], params.get("noise_level", params.get("eta"))
    per_row = (-1,) + (1,) * (like.dim() - 1)
    noise = tensor(noise).reshape(per_row) if isinstance(noise, list) else noise
    if isinstance(index, list):
        at = torch.tensor(index)
        return table[at].reshape(per_row), table[at + 1].reshape(per_row), cap, noise
    return table[index].item(), table[index + 1].item(), cap, noise


def published_log_prob(g: Gaussian, x: Tensor, case: Case) -> Tensor:
    """Our log-prob in the terms of the case: nan where the source divides 0 by 0, constants left out where it does."""
    value, std = g.log_prob(x), g.std.flatten().expand(x.shape[0])
    assert torch.equal(value[std == 0], torch.zeros(int((std == 0).sum())))
    if case["params"].get("include_logprob_normalizer") is False:
        value = value + std.log() + HALF_LOG_TWO_PI
    return value if case["scheme"] == "flow_factory_ode" else value.masked_fill(std == 0, math.nan)


def one_step(case: Case) -> dict[str, Any]:
    storage = getattr(torch, case["params"].get("latent_dtype", "float32"))
    inputs = {name: tensor(value) for name, value in case["inputs"].items()}
    x, v = inputs["sample"].to(storage), inputs["model_output"]
    s, s_next, s_cap, noise = step_levels(case, x)
    g = (ode if case["scheme"] == "flow_factory_ode" else flow_sde)(x, v, s, s_next, noise=noise, s_cap=s_cap)
    if case["params"]["mode"] == "ode":
        drawn = ode(x, v, s, s_next).mean
    else:
        drawn = (inputs["prev_sample"] if "prev_sample" in inputs else g.sample(inputs["noise"])).to(storage)
    root = torch.as_tensor(s - s_next).sqrt().flatten().expand(x.shape[0])
    std = g.std.flatten().expand(x.shape[0])
    return {
        "prev_sample": drawn,
        "prev_sample_mean": g.mean,
        "pred_original_sample": ode(x, v, s, 0 * s).mean,
        "std_dev_t": (std / root)[: len(case["outputs"].get("std_dev_t", std))],
        "std": std[0],
        "sqrt_dt": root,
        "dt": -root.square(),
        "log_prob": published_log_prob(g, drawn, case),
    }


STEPS = [
    case for file in ("flow_grpo_sde", "verl_omni_sde", "flow_factory_sde", "mixgrpo_step") for case in cases(file)
]


@pytest.mark.parametrize("case", STEPS)
def test_one_step(case: Case) -> None:
    got = one_step(case)
    golden.check({name: got[name] for name in case["outputs"]}, case)


@pytest.mark.parametrize("case", cases("schedules", "flow_match_euler_discrete", "linspace_shifted"))
def test_table(case: Case) -> None:
    num_steps, shift, mu = (case["params"].get(name) for name in ("num_steps", "shift", "mu"))
    if truncate := case["scheme"] == "linspace_shifted":
        table = schedules.shifted(num_steps, shift)
    else:
        table = schedules.flow_match_euler(num_steps, shift) if mu is None else schedules.exponential(num_steps, mu)
    golden.check({"sigmas": table, "timesteps": schedules.timesteps(table, truncate=truncate)}, case)


@pytest.mark.parametrize("case", cases("schedules", "calculate_shift_mu"))
def test_shift_mu(case: Case) -> None:
    golden.check({"mu": schedules.calculate_shift_mu(**case["params"])}, case)


def marginal(s: Any, mu: float, s0: float) -> tuple[Any, Any]:
    return (1 - s) * mu, (1 - s) ** 2 * s0**2 + s**2


def field(x: Tensor, s: Any, mu: float, s0: float) -> Tensor:
    """The exact velocity for data N(mu, s0^2)."""
    mean, variance = marginal(s, mu, s0)
    return -mu + (s - (1 - s) * s0**2) / variance * (x - mean)


def data(case: Case) -> tuple[float, float]:
    return case["params"]["mu"], case["params"]["s"]


@pytest.mark.parametrize("case", cases("gaussian_truth", "gaussian_field"))
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


def euler(x: Tensor, table: Tensor, mu: float, s0: float) -> Tensor:
    for s, s_next in zip(table.tolist(), table.tolist()[1:], strict=False):
        x = ode(x, field(x, s, mu, s0), s, s_next).mean
    return x


@pytest.mark.parametrize("case", cases("gaussian_truth", "gaussian_exact_ode_map"))
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


@pytest.mark.parametrize("case", cases("gaussian_truth", "gaussian_convergence", "gaussian_convergence_interior"))
def test_euler_converges_at_first_order(case: Case) -> None:
    x, params = tensor(case["inputs"]["x_init"], torch.float64), case["params"]
    tables = [convergence_table(params, num_steps) for num_steps in params["num_steps"]]
    (mean, variance), (mean_end, variance_end) = (marginal(tables[0][at].item(), *data(case)) for at in (0, -1))
    exact = mean_end + math.sqrt(variance_end / variance) * (x - mean)
    final = torch.stack([euler(x, table, *data(case)) for table in tables])
    error = (final - exact).abs().amax(1)
    order = (error[:-1] / error[1:]).log2()
    got = {"exact": exact, "euler": {"final": final, "max_error": error, "observed_order": order}}
    golden.check(got, case, skip=("dpmpp_1", "dpmpp_2m"))
    assert order[-1].item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("case", cases("gaussian_moments"))
def test_moments(case: Case) -> None:
    params, table = case["params"], case["inputs"]["sigmas"]
    stochastic = range(len(table) - 1) if params["sde_window"] is None else params["sde_window"]
    probes = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    means, variances, stds = [0.0], [1.0], []
    for k, (s, s_next) in enumerate(zip(table, table[1:], strict=False)):
        step = ode if case["scheme"].endswith("_ode") or k not in stochastic else flow_sde
        v = field(probes, s, *data(case))
        out = step(probes, v, s, s_next, noise=params["noise_level"], s_cap=table[1])
        shift, slope = out.mean[0].item(), (out.mean[1] - out.mean[0]).item()
        stds.append(out.std.item())
        means.append(slope * means[-1] + shift)
        variances.append(slope**2 * variances[-1] + stds[-1] ** 2)
    true_mean, true_variance = marginal(tensor(table, torch.float64), *data(case))
    got = {"mean": means, "var": variances, "step_std": stds, "true_mean": true_mean, "true_var": true_variance}
    golden.check(got, case)


@pytest.mark.parametrize("case", cases("mixgrpo_trajectory"))
def test_mixed_walk(case: Case) -> None:
    params, inputs = case["params"], case["inputs"]
    table = schedules.shifted(params["num_steps"], params["shift"])
    assert torch.equal(table, tensor(inputs["sigmas"]))
    times = schedules.timesteps(table, truncate=True) / 1000
    a, b, c = (params["velocity"][name] for name in "abc")
    noises = dict(zip(inputs["noise_steps"], map(tensor, inputs["noise_by_step"]), strict=True))
    x = tensor(inputs["initial_sample"])
    latents, log_probs = [x], []
    for k, (s, s_next) in enumerate(zip(table.tolist(), table.tolist()[1:], strict=False)):
        v = a * x + b * times[k] + c
        if k in params["window"]:
            g = flow_sde(x, v, s, s_next, noise=params["eta"], s_cap=table[1].item())
            x = g.sample(noises[k])
            log_probs.append(g.log_prob(x))
        else:
            x = ode(x, v, s, s_next).mean
        latents.append(x)
    got = {"final_sample": x, "all_latents": torch.stack(latents), "window_log_probs": torch.stack(log_probs, 1)}
    golden.check(got | {"model_times": times, "num_model_evals": len(times)}, case)


@pytest.mark.parametrize("case", cases("mixgrpo_windows"))
def test_mixgrpo_window_wherever_the_published_one_is_full(case: Case) -> None:
    params = case["params"]
    size, high = params["group_size"], params["max_timesteps"]
    runs = case["outputs"]["windows_run_length"]
    published = [tuple(window) for window, length in runs for _ in range(length)]
    for iteration, want in enumerate(published):
        got = windows.progressive(
            high + 2,
            size=size,
            interval=params["iters_per_group"],
            stride=params["prog_overlap_step"] if params["prog_overlap"] else size,
            iteration=iteration,
            roll_back=params["roll_back"],
            high=high,
        )
        # Where the published window has shrunk, or is empty, ours stays the last full one.
        assert got == (want if len(want) == size else tuple(range(high - size, high)))


@pytest.mark.parametrize("case", cases("verl_omni_windows"))
def test_verl_omni_window(case: Case) -> None:
    params = case["params"]
    size, (low, high) = params["sde_window_size"], params["sde_window_range"]
    got = []
    for iteration in case["inputs"]["global_steps"]:
        if params["sample_strategy"] == "progressive":
            settings = {"interval": params["iters_per_group"], "stride": size, "roll_back": False, "high": high}
            window = windows.progressive(high + 1, size=size, iteration=iteration, **settings)
        else:
            seed = params["sde_window_seed"]
            window = windows.random_window(high, size=size, low=low, high=high, iteration=iteration, seed=seed)
        assert len(window) == size
        got.append([window[0], window[-1] + 1])
    golden.check({"window_start_end_exclusive": got}, case)


@pytest.mark.parametrize("case", cases("flow_factory_steps"))
def test_flow_factory_steps(case: Case) -> None:
    params, seeds = case["params"], case["inputs"]["seeds"]
    # Without a list of candidates the source takes every step but the last.
    candidates = params["sde_steps"] or list(range(params["num_steps"] - 1))
    window = {"low": candidates[0], "high": candidates[-1] + 1, "size": params["num_sde_steps"] or len(candidates)}
    for total, want in zip(seeds, case["outputs"]["selected_steps_in_order"], strict=True):
        # The source seeds with training seed + epoch: any split of the sum must give its steps.
        got = windows.random_range(params["num_steps"], **window, iteration=total // 2, seed=total - total // 2)
        assert list(got) == sorted(want)
