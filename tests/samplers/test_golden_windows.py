"""samplers/windows against the published numbers in shared/golden/samplers (its README.md explains the fields)."""

from collections.abc import Callable

import numpy
import pytest
import torch

import golden
from golden import Case
from samplers import windows

# The kinds of each file, all of them checked. A new one fails the test below.
CHECKED = {
    "mixgrpo_windows": {f"mixgrpo_window_schedule {name}" for name in ("progressive", "decay", "exp_decay", "random")},
    "verl_omni_windows": {
        "verl_omni_mixgrpo_window progressive",
        "verl_omni_mixgrpo_window random",
        "verl_omni_random_window",
    },
    "flow_factory_steps": {"flow_factory_step_selection"},
}


def kind(case: Case) -> str:
    strategy = case["params"].get("sample_strategy")
    return f"{case['scheme']} {strategy}" if strategy else case["scheme"]


def cases(file: str, *kinds: str) -> list:
    return golden.cases(f"samplers/{file}.json", where=lambda case: kind(case) in (kinds or CHECKED[file]))


@pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
@pytest.mark.parametrize("file", CHECKED)
def test_every_kind_is_checked(file: str) -> None:
    golden.account(map(kind, golden.load(f"samplers/{file}.json")), CHECKED[file])


def stays(params: dict) -> tuple[Callable[..., tuple[int, ...]], dict]:
    """The window of a strategy that moves, and what it takes for MixGRPO's settings, defaults of its code included."""
    interval = params["iters_per_group"]
    if params["sample_strategy"] == "progressive":
        return windows.progressive, {"interval": interval}
    if params["sample_strategy"] == "decay":
        longest, shortest = params["max_iters_per_group"], params["min_iters_per_group"]
        longest = interval if longest is None else longest
        return windows.decay, {"interval": longest, "shortest": max(1, interval // 4) if shortest is None else shortest}
    names = {"exp_decay_k": "rate", "exp_decay_thre_timestep": "hold"}
    given = {ours: params[theirs] for theirs, ours in names.items() if params.get(theirs) is not None}
    return windows.exp_decay, {"interval": interval} | given


MOVING = ("progressive", "decay", "exp_decay")


@pytest.mark.parametrize("case", cases("mixgrpo_windows", *(f"mixgrpo_window_schedule {name}" for name in MOVING)))
def test_mixgrpo_window_wherever_the_published_one_is_full(case: Case) -> None:
    params = case["params"]
    window, settings = stays(params)
    size, high = params["group_size"], params["max_timesteps"]
    settings |= {"size": size, "high": high, "roll_back": params["roll_back"]}
    settings["stride"] = params["prog_overlap_step"] if params["prog_overlap"] else size
    runs = case["outputs"]["windows_run_length"]
    published = [tuple(window) for window, length in runs for _ in range(length)]
    assert len(published) == params["iterations"]
    for iteration, want in enumerate(published):
        got = window(high + 2, iteration=iteration, **settings)
        # Where the published window has shrunk, or is empty, ours stays the last full one.
        assert got == (want if len(want) == size else tuple(range(high - size, high)))


@pytest.mark.parametrize("case", cases("mixgrpo_windows", "mixgrpo_window_schedule random"))
def test_a_mixgrpo_draw_is_a_window_of_ours(case: Case) -> None:
    """Its generator is numpy's, seeded by the iteration where the trainer passes a seed; ours is Python's."""
    params = case["params"]
    size, high = params["group_size"], params["max_timesteps"]
    base = int(params["rng_seed_of_iteration"].partition("(")[2].partition("+")[0])
    runs = case["outputs"]["windows_run_length"]
    published = [tuple(window) for window, length in runs for _ in range(length)]
    # It draws after an iteration for the next one, so that the first window is no draw.
    draws = [int(numpy.random.default_rng(base + i).integers(0, high - size + 1)) for i in range(len(published) - 1)]
    for start, want in zip([0, *draws], published, strict=True):
        assert windows.frozen(high + 2, low=start, size=size) == want
    ours = {
        windows.random_window(high + 2, size=size, low=0, high=high, iteration=i, seed=base) for i in range(100 * high)
    }
    assert ours == {windows.frozen(high + 2, low=i, size=size) for i in range(high - size + 1)} >= set(published)


def verl_omni(params: dict, iteration: int) -> tuple[int, ...]:
    size, (low, high) = params["sde_window_size"], params["sde_window_range"]
    if params["sample_strategy"] == "random":
        seed = params["sde_window_seed"]
        return windows.random_window(high, size=size, low=low, high=high, iteration=iteration, seed=seed)
    settings = {"interval": params["iters_per_group"], "stride": size, "roll_back": False, "high": high - low}
    return tuple(low + step for step in windows.progressive(high + 1, size=size, iteration=iteration, **settings))


@pytest.mark.parametrize(
    "case",
    cases("verl_omni_windows", "verl_omni_mixgrpo_window progressive", "verl_omni_mixgrpo_window random"),
)
def test_verl_omni_window(case: Case) -> None:
    found = [verl_omni(case["params"], iteration) for iteration in case["inputs"]["global_steps"]]
    assert all(len(window) == case["params"]["sde_window_size"] for window in found)
    golden.check({"window_start_end_exclusive": [[window[0], window[-1] + 1] for window in found]}, case)


@pytest.mark.parametrize("case", cases("verl_omni_windows", "verl_omni_random_window"))
def test_verl_omni_window_of_a_row(case: Case) -> None:
    """There each row draws a window of its own; the rows of our groups share theirs, which is any one of these."""
    params, found = case["params"], []
    size, (low, high) = params["sde_window_size"], params["sde_window_range"]
    for seed in case["inputs"]["seeds"]:
        if size is None:
            window = windows.all_steps(params["num_timesteps"])
        else:
            generator = torch.Generator().manual_seed(seed)
            start = int(torch.randint(low, high - size + 1, (1,), generator=generator))
            window = windows.frozen(params["num_timesteps"], low=start, size=size)
        found.append([window[0], window[-1] + 1])
    golden.check({"window_start_end_exclusive": found}, case)


@pytest.mark.parametrize("case", cases("flow_factory_steps"))
def test_flow_factory_steps(case: Case) -> None:
    params, seeds = case["params"], case["inputs"]["seeds"]
    # Without a list of candidates the source takes every step but the last.
    candidates = params["sde_steps"] or list(range(params["num_steps"] - 1))
    size = params["num_sde_steps"] or len(candidates)
    for total, want in zip(seeds, case["outputs"]["selected_steps_in_order"], strict=True):
        # The source seeds with training seed + epoch: any split of the sum must give its steps.
        got = windows.random_steps(sorted(candidates), size=size, iteration=total // 2, seed=total - total // 2)
        assert list(got) == sorted(want)
