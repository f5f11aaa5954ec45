"""samplers/windows against the published numbers in shared/golden/samplers (its README.md explains the fields)."""

import pytest

import golden
from golden import Case
from samplers import windows

# What each file holds, and what is not checked, with the reason. A new kind of case fails the test below.
CHECKED = {
    "mixgrpo_windows": {"mixgrpo_window_schedule progressive"},
    "verl_omni_windows": {"verl_omni_mixgrpo_window progressive", "verl_omni_mixgrpo_window random"},
    "flow_factory_steps": {"flow_factory_step_selection"},
}
LATER = {
    "mixgrpo_windows": {
        "mixgrpo_window_schedule decay",
        "mixgrpo_window_schedule exp_decay",
        "mixgrpo_window_schedule random",  # drawn by numpy's generator, which samplers does not import
    },
    "verl_omni_windows": {"verl_omni_random_window"},  # a window a row: our groups share theirs
}


def kind(case: Case) -> str:
    strategy = case["params"].get("sample_strategy")
    return f"{case['scheme']} {strategy}" if strategy else case["scheme"]


def cases(file: str) -> list:
    return golden.cases(f"samplers/{file}.json", where=lambda case: kind(case) in CHECKED[file])


@pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
@pytest.mark.parametrize("file", CHECKED)
def test_every_kind_is_checked_or_named_as_later(file: str) -> None:
    assert set(map(kind, golden.load(f"samplers/{file}.json"))) == CHECKED[file] | LATER.get(file, set())


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
