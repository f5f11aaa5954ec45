"""Sigma tables: limit cases and the relations between them. Published tables are in test_golden_samplers.py."""

import math

import pytest
import torch

from samplers import schedules

TABLES = {
    "linear": schedules.linear,
    "shifted": lambda n: schedules.shifted(n, 3.0),
    "exponential": lambda n: schedules.exponential(n, 0.63),
    "flow_match_euler": lambda n: schedules.flow_match_euler(n, 3.0),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("num_steps", [1, 2, 10, 50])
def test_a_table_falls_strictly_from_one_to_zero(name: str, num_steps: int) -> None:
    table = TABLES[name](num_steps)
    assert table.shape == (num_steps + 1,) and table.dtype == torch.float32
    assert table[0] == 1 and table[-1] == 0
    assert (table.diff() < 0).all()


def test_no_shift_is_linear() -> None:
    assert torch.equal(schedules.shifted(10, 1.0), schedules.linear(10))
    torch.testing.assert_close(schedules.exponential(10, 0.0), schedules.linear(10), atol=1e-7, rtol=0)


def test_the_exponential_shift_is_the_shift_by_its_exponential() -> None:
    torch.testing.assert_close(
        schedules.exponential(12, 1.15), schedules.shifted(12, math.exp(1.15)), atol=1e-6, rtol=0
    )


def test_shifts_compose_by_multiplication() -> None:
    t = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    twice = schedules.shift_time(schedules.shift_time(t, 3.0), 2.0)
    torch.testing.assert_close(twice, schedules.shift_time(t, 6.0), atol=1e-12, rtol=0)


@pytest.mark.parametrize("num_steps", [4, 10, 40])
def test_diffusers_shifts_its_last_level_twice(num_steps: int) -> None:
    # Shifting twice by 3 is shifting once by 9, so the level is 9 t / (1 + 8 t) at t = 1/1000 whatever the step count.
    assert schedules.flow_match_euler(num_steps, 3.0)[-2].item() == pytest.approx(0.009 / 1.008, abs=1e-7)


def test_mu_passes_through_its_two_anchors_and_goes_on() -> None:
    assert schedules.calculate_shift_mu(256) == pytest.approx(0.5)
    assert schedules.calculate_shift_mu(4096) == pytest.approx(1.15)
    assert schedules.calculate_shift_mu(8192, max_seq_len=8192, max_shift=0.9) == pytest.approx(0.9)
    assert schedules.calculate_shift_mu(7936) == pytest.approx(1.8)


def test_timesteps_leave_out_the_end_and_truncate_on_request() -> None:
    table = torch.tensor([1.0, 0.9545454, 0.3, 0.0])
    torch.testing.assert_close(schedules.timesteps(table), torch.tensor([1000.0, 954.5454, 300.0]), atol=1e-3, rtol=0)
    assert schedules.timesteps(table, truncate=True).tolist() == [1000, 954, 300]


@pytest.mark.parametrize("name", TABLES)
def test_no_step_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="num_steps=0"):
        TABLES[name](0)
