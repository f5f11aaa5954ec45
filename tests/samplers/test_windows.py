"""Windows: determined by their arguments alone, full, inside their range; and what a Plan refuses."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from samplers import windows
from samplers.plan import Plan
from samplers.trees import picture

Window = tuple[int, ...]
DRAWS = [windows.random_range, windows.random_window]


@pytest.mark.parametrize("draw", DRAWS)
def test_a_draw_is_a_full_sorted_set_inside_its_range(draw: Callable[..., Window]) -> None:
    for iteration in range(200):
        window = draw(20, size=3, low=2, high=11, iteration=iteration, seed=5)
        assert len(set(window)) == 3 and list(window) == sorted(window)
        assert 2 <= window[0] and window[-1] < 11


@pytest.mark.parametrize("draw", DRAWS)
def test_a_draw_depends_on_its_arguments_alone(draw: Callable[..., Window]) -> None:
    once = [draw(20, size=3, low=0, high=12, iteration=i, seed=5) for i in range(50)]
    again = [draw(20, size=3, low=0, high=12, iteration=i, seed=5) for i in reversed(range(50))]
    assert once == again[::-1]
    assert once != [draw(20, size=3, low=0, high=12, iteration=i, seed=6) for i in range(50)]
    assert len(set(once)) > 5


def test_the_seeds_of_a_run_are_no_shifted_copies_of_its_neighbours() -> None:
    runs = [[windows.seed_of(run, iteration) for iteration in range(200)] for run in range(-1, 4)]
    assert len({seed for run in runs for seed in run}) == 1000 and all(0 <= s < 2**63 for run in runs for s in run)
    assert len({seed % 2**32 for run in runs for seed in run}) == 1000  # what counts in torch's generator
    assert windows.seed_of(3, 1) == runs[4][1]
    with pytest.raises(ValueError, match="iteration=-1"):
        windows.seed_of(0, -1)


def test_every_step_is_equally_likely_in_a_random_range() -> None:
    drawn = [windows.random_range(9, size=2, low=1, high=6, iteration=i, seed=0) for i in range(2000)]
    counts = Counter(step for window in drawn for step in window)
    # 800 expected each, standard deviation sqrt(2000 * 0.4 * 0.6) = 22
    assert set(counts) == {1, 2, 3, 4, 5} and all(abs(count - 800) < 110 for count in counts.values())
    assert any(b - a > 1 for a, b in drawn)


def test_every_start_is_equally_likely_in_a_random_window() -> None:
    drawn = [windows.random_window(9, size=2, low=1, high=6, iteration=i, seed=0) for i in range(2000)]
    counts = Counter(start for start, _ in drawn)
    # 500 expected each, standard deviation sqrt(2000 * 0.25 * 0.75) = 19
    assert set(counts) == {1, 2, 3, 4} and all(abs(count - 500) < 97 for count in counts.values())
    assert all(b == a + 1 for a, b in drawn)


def test_a_draw_of_the_whole_range_is_the_range() -> None:
    for draw in DRAWS:
        assert draw(9, size=4, low=3, high=7, iteration=8, seed=1) == (3, 4, 5, 6)


def sweep(count: int, **overrides: int | bool | None) -> list[Window]:
    settings = {"size": 4, "interval": 25, "stride": 1, "high": 23} | overrides
    return [windows.progressive(25, iteration=i, **settings) for i in range(count)]


def test_progressive_moves_by_stride_every_interval() -> None:
    starts = [window[0] for window in sweep(75)]
    assert starts == [0] * 25 + [1] * 25 + [2] * 25
    assert [window[0] for window in sweep(9, interval=3, stride=4)] == [0, 0, 0, 4, 4, 4, 8, 8, 8]


@pytest.mark.parametrize("roll_back", [True, False])
@pytest.mark.parametrize("stride", [0, 1, 3, 4, 30])
@pytest.mark.parametrize("size", [1, 4, 23])
def test_progressive_is_always_full_and_inside(size: int, stride: int, roll_back: bool) -> None:
    for window in sweep(200, size=size, stride=stride, interval=2, roll_back=roll_back):
        assert window == tuple(range(window[0], window[0] + size))
        assert 0 <= window[0] and window[-1] < 23


def test_progressive_covers_every_step_and_rolls_back() -> None:
    rolled, stayed = sweep(1300), sweep(1300, roll_back=False)
    assert {step for window in rolled[:600] for step in window} == set(range(23))
    assert rolled[:600] == stayed[:600] and rolled[600:1200] == rolled[:600]
    assert set(stayed[600:]) == {(19, 20, 21, 22)}


def test_progressive_leaves_out_the_last_step_by_default() -> None:
    assert max(max(window) for window in sweep(1000, high=None)) == 23


STAYS: list[tuple[Callable[..., Window], dict[str, Any]]] = [
    (windows.progressive, {"interval": 5}),
    (windows.decay, {"interval": 9, "shortest": 2}),
    (windows.exp_decay, {"interval": 9, "rate": 0.2, "hold": 3}),
]


@pytest.mark.parametrize(("window", "settings"), STAYS)
@given(st.data())
def test_a_window_that_moves_is_full_inside_and_never_turns_back(
    window: Callable[..., Window], settings: dict[str, Any], data: st.DataObject
) -> None:
    num_steps = data.draw(st.integers(1, 40))
    high = data.draw(st.integers(1, num_steps))
    size, stride = data.draw(st.integers(1, high)), data.draw(st.integers(0, 45))
    at, settings = data.draw(st.integers(0, 900)), settings | {"size": size, "stride": stride, "high": high}
    stayed = [window(num_steps, iteration=i, roll_back=False, **settings) for i in (at, at + 1)]
    assert all(found == tuple(range(found[0], found[0] + size)) and found[-1] < high for found in stayed)
    assert stayed[1][0] - stayed[0][0] in (0, min(stride, high - size - stayed[0][0]))
    rolled = window(num_steps, iteration=at, roll_back=True, **settings)
    assert rolled in {window(num_steps, iteration=i, roll_back=False, **settings) for i in range(at + 1)}


def lengths(window: Callable[..., Window], count: int, **settings: Any) -> list[int]:
    """How many iterations each start stays."""
    found = Counter(window(25, size=1, stride=1, high=10, iteration=i, **settings)[0] for i in range(count))
    return [found[start] for start in sorted(found)]


def test_stays_shorten_towards_the_data() -> None:
    # int(9 (1 - k / 10) + 2 k / 10) for k = 0 to 9, and k = 10 (2), which waits at 9
    assert lengths(windows.decay, 56, interval=9, shortest=2) == [9, 8, 7, 6, 6, 5, 4, 4, 3, 2 + 2]
    # ceil(9 exp(-0.2 max(0, k - 3))): 9 9 9 9 8 7 5 5 4 3, then 3
    assert lengths(windows.exp_decay, 71, interval=9, rate=0.2, hold=3) == [9, 9, 9, 9, 8, 7, 5, 5, 4, 3 + 3]
    assert lengths(windows.exp_decay, 22, interval=2, rate=0.0) == lengths(windows.progressive, 22, interval=2)
    assert lengths(windows.decay, 22, interval=2, shortest=2) == lengths(windows.progressive, 22, interval=2)
    # exp(-1e3) is 0 in floating point, and still an iteration
    assert lengths(windows.exp_decay, 19, interval=9, rate=1e3, hold=0)[:3] == [9, 1, 1]


@given(st.integers(2, 60), st.floats(0.02, 1), st.integers(0, 10**6), st.integers(0, 2**31))
def test_a_fraction_is_of_all_steps_but_the_last(num_steps: int, share: float, iteration: int, seed: int) -> None:
    size = int((num_steps - 1) * share)
    if size == 0:
        with pytest.raises(ValueError, match=f"1/{num_steps - 1} to 1"):
            windows.fraction(num_steps, share=share, iteration=iteration, seed=seed)
        return
    found = windows.fraction(num_steps, share=share, iteration=iteration, seed=seed)
    assert len(found) == size and list(found) == sorted(set(found)) and 0 <= found[0] <= found[-1] < num_steps - 1
    assert found == windows.fraction(num_steps, share=share, iteration=iteration, seed=seed)


def test_a_fraction_is_drawn_anew() -> None:
    drawn = [windows.fraction(16, share=0.6, iteration=i, seed=3) for i in range(40)]
    assert len(set(drawn)) > 30 and {len(window) for window in drawn} == {9}


def test_fixed_windows() -> None:
    assert windows.frozen(9, low=2, size=3) == (2, 3, 4)
    assert windows.all_steps(5) == (0, 1, 2, 3)
    assert windows.all_steps(5, skip_last=0) == (0, 1, 2, 3, 4)
    assert windows.first(5, size=2) == (0, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: windows.all_steps(3, skip_last=3), "skip_last=3.*0 to 2"),
        (lambda: windows.first(5, size=0), "size=0.*1 to 5"),
        (lambda: windows.first(5, size=6), "size=6.*1 to 5"),
        (lambda: windows.random_range(9, size=4, low=1, high=4, iteration=0, seed=0), "size=4.*1 to 3"),
        (lambda: windows.random_window(9, size=1, low=4, high=4, iteration=0, seed=0), "low=4, high=4"),
        (lambda: windows.random_window(9, size=1, low=4, high=10, iteration=0, seed=0), "num_steps=9"),
        (lambda: windows.random_window(9, size=1, low=0, high=4, iteration=-1, seed=0), "iteration=-1"),
        (lambda: windows.progressive(9, size=1, interval=0, stride=1, iteration=0), "interval=0"),
        (lambda: windows.progressive(9, size=1, interval=1, stride=-1, iteration=0), "stride=-1"),
        (lambda: windows.progressive(9, size=9, interval=1, stride=1, iteration=0), "size=9.*1 to 8"),
        (lambda: windows.decay(9, size=1, interval=3, shortest=4, stride=1, iteration=0), "shortest=4"),
        (lambda: windows.decay(9, size=1, interval=3, shortest=0, stride=1, iteration=0), "shortest=0"),
        (lambda: windows.exp_decay(9, size=1, interval=3, rate=-1.0, stride=1, iteration=0), "rate=-1"),
        (lambda: windows.frozen(9, low=7, size=3), "size=3.*1 to 2"),
        (lambda: windows.fraction(9, share=0.1, iteration=0, seed=0), "fraction=0.1 of 8.*1/8 to 1"),
        (lambda: windows.fraction(9, share=1.2, iteration=0, seed=0), "fraction=1.2.*1/8 to 1"),
        (lambda: Plan(0, (), ()), "num_steps=0"),
        (lambda: Plan(5, (1, 0), (0,)), r"stochastic=\(1, 0\).*give \(0, 1\)"),
        (lambda: Plan(5, (1, 1), (1,)), "without repeats"),
        (lambda: Plan(5, (0, 5), (0,)), "0 to 4"),
        (lambda: Plan(5, (-1, 2), (2,)), "0 to 4"),
        (lambda: Plan(5, (0, 1), (1, 2)), r"\[2\] draw no noise"),
        (lambda: Plan(5, (0, 1), ()), r"trained=\(\)"),
    ],
)
def test_errors_name_the_value_and_the_remedy(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_plan_is_drawn_one_character_a_step() -> None:
    assert picture(Plan(6, (1, 2, 4), (2, 4)).tree(2)) == "·o●·●·"
    assert picture(Plan(3, (), ()).tree(1)) == "···"
