"""Sigma tables of samplers/ against the published numbers in shared/golden/samplers (its README.md explains them)."""

import pytest
import torch

import golden
from golden import Case
from samplers import schedules
from samplers.tables import Compressed, Exponential, Shifted

TABLES = {"calculate_shift_mu", "linspace_shifted", "flow_match_euler_discrete"}
TAILS = {"mixgrpo_flash_schedule"}


@pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
@pytest.mark.parametrize(("file", "known"), [("schedules", TABLES), ("mixgrpo_flash_schedule", TAILS)])
def test_every_kind_is_checked(file: str, known: set[str]) -> None:
    golden.account(map(golden.kind, golden.load(f"samplers/{file}.json")), known)


@pytest.mark.parametrize("case", golden.cases("samplers/schedules.json", where=lambda case: case["scheme"] in TABLES))
def test_table(case: Case) -> None:
    params = case["params"]
    if case["scheme"] == "calculate_shift_mu":
        got = {"mu": schedules.calculate_shift_mu(**params)}
    elif case["scheme"] == "linspace_shifted":
        table = schedules.shifted(params["num_steps"], params["shift"])
        got = {"sigmas": table, "timesteps": schedules.timesteps(table, truncate=True)}
    else:
        assert case["scheme"] == "flow_match_euler_discrete"
        if params["mu"] is None:
            trained = params["num_train_timesteps"]
            table = schedules.flow_match_euler(params["num_steps"], params["shift"], num_train_timesteps=trained)
        else:
            table = Exponential(params["mu"]).levels(torch.zeros(params["num_steps"] + 1))
        got = {"sigmas": table, "timesteps": schedules.timesteps(table)}
    golden.check(got, case)


@pytest.mark.parametrize(
    "case", golden.cases("samplers/mixgrpo_flash_schedule.json", where=lambda case: case["scheme"] in TAILS)
)
def test_compressed_tail(case: Case) -> None:
    params = case["params"]
    num_steps, after = params["num_steps"], params["last_sde_index"] + 1
    steps = schedules.flash_steps(num_steps, after, params["post_compress_ratio"])
    table = Compressed(after, steps, Shifted(params["shift"]))
    levels, total = table.levels(torch.zeros(num_steps + 1)), table.num_steps(num_steps)
    assert levels[-1] == 0
    if case["outputs"]["num_post_points"] == 1:  # the published tail of one point takes no step and stops above 0
        assert steps == 1
        golden.check({"sigmas": levels[:-1], "total_steps": total - 1, "num_post_points": 1}, case)
    else:
        golden.check({"sigmas": levels, "total_steps": total, "num_post_points": steps + 1}, case)
