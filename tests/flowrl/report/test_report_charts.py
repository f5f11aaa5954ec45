"""The charts of a report, as numbers: where a value lies, what thinning keeps, which ticks stand beside it."""

import math
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import savgol_filter

from flowrl.report import scales
from flowrl.report.figures import HEIGHT, WIDTH, ChartCurve, ChartEvent, ChartFrame, draw, stack
from flowrl.report.numerals import (
    MeanWithError,
    decimals_for,
    format_compact,
    format_duration,
    format_number,
    format_signed,
    format_with_error,
    mean,
)


def coordinates(path: str) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


def test_a_line_goes_where_its_values_lie():
    x, y = scales.Axis(0, 4, 1000, ()), scales.Axis(-1, 1, 400, ())
    path = scales.line_path([(0, -1.0), (1, 0.0), (2, 1.0), (4, 0.5)], x, y)
    assert path == "M0 400L250 200L500 0L1000 100"


def test_a_missing_value_breaks_the_line_and_a_lonely_one_is_a_dot():
    x, y = scales.Axis(0, 4, 1000, ()), scales.Axis(0, 1, 400, ())
    path = scales.line_path([(0, 0.0), (1, 1.0), (2, None), (3, 0.5), (4, None)], x, y)
    assert path == "M0 400L250 0M750 200h0"
    assert scales.line_path([(2, 0.5)], x, y) == "M500 200h0"


def test_a_log_axis_has_equal_room_for_a_decade_and_none_for_zero():
    axis = scales.axis([1e-6, 1e-4, 1e-2], 400, log=True)
    assert axis.log and [text for _, text in axis.ticks] == ["1e−6", "1e−5", "1e−4", "0.001", "0.01"]
    assert axis.at(1e-4) - axis.at(1e-5) == pytest.approx(axis.at(1e-5) - axis.at(1e-6))
    assert not axis.shows(0.0) and not axis.shows(None) and axis.shows(1e-6)
    assert scales.line_path([(0, 1e-4), (1, 0.0), (2, 1e-4)], scales.Axis(0, 2, 100, ()), axis) == "M0 200h0M100 200h0"
    assert not scales.axis([1.0, 2.0], 400, log=True).log  # within a decade a log axis shows nothing more


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.booleans())
def test_ticks_are_few_inside_and_say_their_value(values, zero):
    axis = scales.axis(values, 400, zero=zero)
    assert axis.low <= min(values) and axis.high >= max(values) and axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 8
    step = axis.ticks[1][0] - axis.ticks[0][0]
    for value, text in axis.ticks:
        assert axis.low - 1e-9 * abs(step) <= value <= axis.high + 1e-9 * abs(step)
        assert float(text.replace("−", "-")) == pytest.approx(value, rel=1e-6, abs=1e-6 * abs(step))
    if zero:
        assert axis.low <= 0 <= axis.high


def test_thinning_keeps_ends_order_and_every_outlier():
    rng = random.Random(0)
    points = [(float(i), rng.gauss(0, 1)) for i in range(5000)]
    points[1234], points[4321] = (1234.0, 50.0), (4321.0, -50.0)
    kept = scales.thin_points(points, 200)
    assert len(kept) <= 202 and kept == sorted(kept) and set(kept) <= set(points)
    assert {points[0], points[-1], points[1234], points[4321]} <= set(kept)
    assert scales.thin_points(points[:200], 200) == points[:200]


def test_thinning_leaves_gaps():
    points = [(float(i), None if 400 <= i < 600 else 1.0) for i in range(1000)]
    values = [v for _, v in scales.thin_points(points, 100)]
    assert None in values and values[0] == values[-1] == 1.0


def test_smoothing_keeps_lines_and_means():
    line = [2.0 * i for i in range(50)]
    assert scales.smooth(line, 7) == pytest.approx(line)
    noisy = [random.Random(i).gauss(0, 1) for i in range(40)]
    assert scales.smooth(noisy, 9) == pytest.approx(savgol_filter(noisy, 9, 1))
    assert scales.smooth([0.0, 3.0, 0.0, 3.0], 3) == pytest.approx([1.0, 1.0, 2.0, 2.0])
    assert scales.smooth([1.0, None, 3.0], 3) == [1.0, None, 3.0]
    assert scales.smooth([4.0], 5) == [4.0] and scales.smooth([], 5) == []
    assert [scales.smoothing_window(n) for n in (5, 19, 80, 1000)] == [1, 1, 5, 63]


def test_a_chart_places_points_bars_ticks_and_events():
    frame = ChartFrame(
        10, [ChartEvent(5, "alarm", "alarm: a"), ChartEvent(5, "alarm", "alarm: b"), ChartEvent(2, "resume", "again")]
    )
    curve = ChartCurve("held-out", [(0, 0.2), (10, 0.8)], 2, dots=True, errors=[0.1, None])
    chart = draw(frame, "reward", [curve])
    assert chart is not None
    (low, high) = (0.1, 0.8)
    room = (high - low) * 0.06
    at = [HEIGHT * (1 - (v - low + room) / (high - low + 2 * room)) for v in (0.2, 0.8, 0.1, 0.3)]
    (drawn,) = chart.drawn
    assert coordinates(drawn.raw) == [(0.0, round(at[0], 1)), (WIDTH, round(at[1], 1))]
    assert drawn.dots == f"M0 {at[0]:.1f}h0M1000 {at[1]:.1f}h0"
    assert coordinates(drawn.bars) == [(0.0, round(at[2], 1)), (0.0, round(at[3], 1))]
    assert chart.events == [(50.0, "alarm", "alarm: a; alarm: b"), (20.0, "resume", "again")]
    assert chart.x_ticks[0] == (0.0, "0") and chart.x_ticks[-1] == (100.0, "10")
    assert chart.alt == "reward: held-out 0.2 at iteration 0, 0.8 at iteration 10, between 0.2 and 0.8"
    assert chart.data["curves"][0]["e"] == [0.1, None]
    assert draw(frame, "nothing", [ChartCurve("x", [(1, None)])]) is None


def test_a_smoothed_course_on_a_log_axis_stays_among_its_values():
    """Zeros have no place on it and may not pull the course below the axis."""
    curve = ChartCurve("gap", [(i, 0.0 if i % 3 else 10.0 ** -(i % 4 + 3)) for i in range(1, 101)])
    chart = draw(ChartFrame(100), "gap", [curve], log=True)
    assert chart is not None and chart.note == "log, zeros left out"
    (drawn,) = chart.drawn
    assert all(0 <= y <= HEIGHT for _, y in coordinates(drawn.raw) + coordinates(drawn.smoothed))
    even = draw(ChartFrame(40), "kl", [ChartCurve("kl", [(i, 10.0 ** (i / 10)) for i in range(1, 41)])], log=True)
    assert even is not None and coordinates(even.drawn[0].smoothed) == coordinates(even.drawn[0].raw)
    ramp = scales.smooth([0.0] * 30 + [1.0, 0.0, 0.0, 0.0, 0.0], 9)
    assert min(v for v in ramp if v is not None) >= 0  # nor may a line fitted at an end leave its values


def test_stacked_areas_add_up():
    frame = ChartFrame(2)
    chart = stack(frame, "time", [ChartCurve("a", [(1, 1.0), (2, 1.0)]), ChartCurve("b", [(1, 3.0), (2, 3.0)], 2)])
    assert chart is not None
    below, above = (coordinates(d.area) for d in chart.drawn)
    assert below[:2] == above[:1:-1]  # the top of the one is the floor of the other
    heights = [HEIGHT - y for _, y in above[:2]]
    assert heights == pytest.approx([4 * (HEIGHT - y) for _, y in below[:2]], abs=0.5)
    assert math.isclose(below[-1][1], HEIGHT)


def test_numbers_as_people_read_them():
    assert mean([1.0, None, 3.0]) == MeanWithError(2.0, 1.0, 2) and mean([None]) is None
    old, new = MeanWithError(0.7590416, 0.0563174, 40), MeanWithError(21.5, 0.11, 40)
    assert (
        format_with_error(old, decimals_for(old)) == "0.759 ±\u00a00.056"
        and format_with_error(new, decimals_for(new)) == "21.50 ±\u00a00.11"
    )
    assert format_with_error(MeanWithError(-0.0474, 0.0406, 40), 3, signed=True) == "−0.047 ±\u00a00.041"
    assert (format_number(-0.0001, 2), format_signed(0.0001, 2), format_signed(0.5, 2)) == ("0.00", "0.00", "+0.50")
    assert (format_compact(1.5e-7), format_compact(0.25), format_compact(-3.0)) == ("1.5e−7", "0.25", "−3")
    told = {7.66: "7.7 s", 59: "59 s", 59.7: "1 min 00 s", 140: "2 min 20 s", 3070: "51 min", 18180: "5 h 03 min"}
    assert {seconds: format_duration(seconds) for seconds in told} == told
