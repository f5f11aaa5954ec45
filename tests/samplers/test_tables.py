"""Tables of a plan: they fall to 0, keep what they say they keep, and know their length before they are made."""

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from samplers import schedules
from samplers.plan import OwnTable, Table
from samplers.tables import At, Coarse, Compressed, Exponential, Karras, Linear, Merged, Shifted


@st.composite
def own_tables(draw: st.DrawFn) -> Tensor:
    """Tables of 1 to 30 steps that fall from 1, or just below, to 0."""
    gaps = draw(st.lists(st.floats(0.02, 1), min_size=1, max_size=30))
    levels = 1 - torch.tensor([0.0, *gaps], dtype=torch.float64).cumsum(0) / sum(gaps)
    levels[0], levels[-1] = draw(st.sampled_from([1.0, 0.999999])), 0
    return levels.float()


@st.composite
def tables(draw: st.DrawFn, steps: int) -> Table:
    """Any table that `steps` steps of the pipeline's own allow."""
    base = draw(st.sampled_from([OwnTable(), Linear(), Shifted(3.0), Exponential(1.15), Karras(7.0)]))
    after = draw(st.integers(0, steps - 1))
    some = st.integers(1, 12)
    makers = {
        "base": lambda: base,
        "karras": lambda: Karras(draw(st.floats(0.5, 9)), base),
        "merged": lambda: Merged(base, after, draw(st.integers(1, steps - after))),
        "coarse": lambda: Coarse(after, draw(some), base),
        "compressed": lambda: Compressed(after, draw(some), base),
    }
    return makers[draw(st.sampled_from(sorted(makers)))]()


@settings(deadline=None)
@given(st.data())
def test_a_table_falls_to_zero_and_is_as_long_as_it_says(data: st.DataObject) -> None:
    own = data.draw(own_tables())
    table = data.draw(tables(own.numel() - 1))
    levels = table.levels(own)
    assert levels.dtype == torch.float32
    assert levels.numel() == table.num_steps(own.numel() - 1) + 1
    assert levels[-1] == 0 and (levels.diff() < 0).all()


@settings(deadline=None)
@given(own=own_tables(), after=st.integers(0, 29), number=st.integers(1, 12))
def test_a_tail_leaves_alone_what_is_before_it(own: Tensor, after: int, number: int) -> None:
    assume(after < own.numel() - 1)
    for table in (Coarse(after, number), Compressed(after, number)):
        assert torch.equal(table.levels(own)[: after + 1], own[: after + 1])


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 7.0])
@pytest.mark.parametrize(("after", "steps"), [(0, 5), (4, 7), (14, 3), (23, 1), (23, 4), (24, 2)])
def test_a_compressed_tail_of_a_shifted_table_is_that_in_unshifted_time(shift: float, after: int, steps: int) -> None:
    u = torch.linspace(1 - after / 25, 0, steps + 1, dtype=torch.float64)
    want = schedules.shift_time(u, shift).float()
    for own in (schedules.shifted(25, shift), schedules.exponential(25, math.log(shift))):
        got = Compressed(after, steps).levels(own)[after:]
        torch.testing.assert_close(got, want, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_a_table_of_few_steps_can_be_refined(num_steps: int) -> None:
    shift = 3.0 if num_steps > 1 else 1.0  # one step says nothing about the shift
    got = Compressed(0, 5).levels(schedules.shifted(num_steps, shift))
    torch.testing.assert_close(got, schedules.shifted(5, shift), atol=1e-6, rtol=1e-6)


@settings(deadline=None)
@given(own=own_tables(), after=st.integers(0, 29))
def test_compressing_to_the_own_number_of_steps_changes_nothing(own: Tensor, after: int) -> None:
    assume(after < own.numel() - 1)
    got = Compressed(after, own.numel() - 1 - after).levels(own)
    torch.testing.assert_close(got, own, atol=1e-5, rtol=1e-5)


def test_a_coarse_tail_takes_every_nth_level_and_the_end() -> None:
    own = schedules.linear(10)
    for after, every, kept in (
        (4, 2, [0, 1, 2, 3, 4, 6, 8, 10]),
        (3, 3, [0, 1, 2, 3, 6, 9, 10]),
        (8, 9, [*range(9), 10]),
    ):
        assert torch.equal(Coarse(after, every).levels(own), own[kept])
    for step, every in ((0, 2), (4, 2), (6, 1)):  # the published slices, where they reach 0
        assert torch.equal(Coarse(step + 2, every).levels(own), torch.cat([own[: step + 2], own[step + 2 :: every]]))


def test_merging_drops_what_lies_between() -> None:
    own = schedules.shifted(8, 3.0)
    assert torch.equal(Merged(OwnTable(), 2, 3).levels(own), own[[0, 1, 2, 5, 6, 7, 8]])
    assert torch.equal(Merged(OwnTable(), 5, 3).levels(own), own[[0, 1, 2, 3, 4, 5, 8]])
    assert torch.equal(Merged(OwnTable(), 2, 1).levels(own), own)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("num_steps", [2, 5, 20])
def test_karras_spacing_is_that_of_diffusers(num_steps: int, shift: float) -> None:
    plain, spaced = (FlowMatchEulerDiscreteScheduler(shift=shift, use_karras_sigmas=flag) for flag in (False, True))
    for scheduler in (plain, spaced):
        scheduler.set_timesteps(num_steps)
    torch.testing.assert_close(Karras().levels(torch.as_tensor(plain.sigmas)), spaced.sigmas, atol=1e-6, rtol=1e-6)


def test_flash_always_has_a_tail() -> None:
    assert [schedules.flash_steps(25, after, 0.4) for after in (4, 9, 14, 19, 23, 24)] == [7, 5, 3, 1, 1, 1]
    assert schedules.flash_steps(25, 4, 0.2) == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shifted(0.0), "shift=0.0: give a number above 0"),
        (lambda: Karras(-1.0), "rho=-1.0: give a number above 0"),
        (lambda: Merged(OwnTable(), -1, 2), "begin=-1, count=2"),
        (lambda: Merged(OwnTable(), 3, 0), "begin=3, count=0"),
        (lambda: Merged(OwnTable(), 3, 3).num_steps(5), "steps 3 to 5 are to become one of 5: end at 4 or before"),
        (lambda: Merged(OwnTable(), 3, 3).levels(schedules.linear(5)), "steps 3 to 5"),
        (lambda: Coarse(0, 0), "after=0, every=0"),
        (lambda: Coarse(5, 1).num_steps(5), "after=5 leaves no step of 5 to the tail: give 4 or less"),
        (lambda: Compressed(0, 0), "after=0, steps=0"),
        (lambda: Compressed(5, 2).levels(schedules.linear(5)), "after=5 leaves no step"),
    ],
)
def test_settings_that_leave_no_table_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("level", "begins", "at"), [(0.7, None, 1), (0.7, 0, 2), (0.75, 0, 2), (1.0, 0, 1), (0.95, 2, 3)]
)
def test_a_level_has_its_place_in_the_table(level: float, begins: int | None, at: int) -> None:
    own = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0])
    table = At(level, begins)
    levels = table.levels(own)
    assert table.place(own) == at and abs(float(levels[at]) - level) <= 1e-6 and levels[at] < levels[at - 1]
    assert len(levels) == table.num_steps(4) + 1 and levels[-1] == 0
    if begins is not None:
        assert torch.equal(levels[at + 1 :], own[at + 1 :]) and torch.equal(levels[: at - 1], own[: at - 1])
