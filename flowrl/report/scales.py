"""From values to a drawing: axes with round ticks, thinning that keeps outliers, smoothing without lag."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flowrl.report.numerals import MINUS

LOG_FROM = 10.0  # ratio of the largest value to the smallest from which a log axis is used


@dataclass(frozen=True)
class Axis:
    """Values low to high on a length of `size`, logarithmic or not, with ticks (value, text)."""

    low: float
    high: float
    size: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, 0 to size; beyond for one outside."""
        a, b, v = (math.log10(x) if self.log else x for x in (self.low, self.high, value))
        return (v - a) / (b - a) * self.size

    def shows(self, value: float | None) -> bool:
        """Whether a value can be drawn: a log axis has no place for zero."""
        return value is not None and (not self.log or value > 0)


def axis(values: Iterable[float], size: float, *, zero: bool = False, log: bool = False, number: int = 5) -> Axis:
    """An axis around the values with about `number` ticks; log where asked for and the values span a decade."""
    known = list(values)
    positive = [v for v in known if v > 0]
    if log and positive and max(positive) / min(positive) >= LOG_FROM:
        return _log_axis(min(positive), max(positive), size)
    low, high = min(known, default=0.0), max(known, default=1.0)
    low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
    if high - low <= max(1e-9 * max(abs(high), abs(low)), 1e-300):  # no spread that a reader could tell apart
        room = abs(high) * 0.1 or 1.0
        low, high = (0.0 if zero and low >= 0 else low - room), high + room
    else:
        room = (high - low) * 0.06
        low, high = (low - room if low != 0 or not zero else low), (high + room if high != 0 or not zero else high)
    return Axis(low, high, size, _ticks(low, high, number))


def iteration_axis(last: int, size: float) -> Axis:
    """The axis of iterations, 0 to the last."""
    last = max(last, 1)
    step = max(1, _round_step(last, 5))
    ticks = tuple((float(v), f"{v:,}") for v in range(0, last + 1, int(step)))
    return Axis(0.0, float(last), size, ticks)


def _round_step(span: float, number: int) -> float:
    """The round step, 1, 2 or 5 times a power of ten, that cuts a span into about `number` (at most 4/3 of it)."""
    raw = span / number
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.75)


def _ticks(low: float, high: float, number: int) -> tuple[tuple[float, str], ...]:
    step = _round_step(high - low, number)
    marks = [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    largest = max(map(abs, marks), default=1.0)
    if largest < 1e-3 or largest >= 1e5:
        return tuple((m, _format_scientific(m, largest, step)) for m in marks)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    return tuple((m, f"{m:.{places}f}".replace("-", MINUS)) for m in marks)


def _format_scientific(value: float, largest: float, step: float) -> str:
    """All ticks of an axis with the same power of ten."""
    if value == 0:
        return "0"
    power = math.floor(math.log10(largest) + 1e-9)
    places = max(0, power - math.floor(math.log10(step) + 1e-9))
    return f"{value / 10.0**power:.{places}f}e{power}".replace("-", MINUS)


def _log_axis(low: float, high: float, size: float) -> Axis:
    room = 10 ** (0.06 * math.log10(high / low))
    low, high = low / room, high * room
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    every = max(1, math.ceil(len(powers) / 5))
    marks = [10.0**p for p in powers if (p - powers[0]) % every == 0]
    if len(powers) < 2:
        marks = sorted({m * 10.0**p for p in range(powers[0] - 1, powers[-1] + 1) for m in (1, 2, 5)})
        marks = [m for m in marks if low <= m <= high]
    return Axis(low, high, size, tuple((m, _format_power(m)) for m in marks), True)


def _format_power(value: float) -> str:
    return (
        f"{value:g}"
        if 1e-3 <= value < 1e4
        else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("-", MINUS)
    )


def smooth(values: Sequence[float | None], window: int) -> list[float | None]:
    """The mean of the known values within a window around each; None where the value itself is None.

    window is odd. Within half a window of either end, the least-squares line of the outermost window is extended, so
    that the curve neither lags nor follows the noise of the last few values (a first-order Savitzky-Golay filter).
    """
    reach = max(0, min(window, len(values)) - 1) // 2
    flat = [0.0 if v is None else v for v in values]
    known = list(itertools.accumulate((v is not None for v in values), initial=0))
    result: list[float | None] = [None] * len(values)
    for i in range(reach, len(values) - reach):
        if values[i] is not None:
            low, high = i - reach, i + reach + 1
            result[i] = sum(flat[low:high]) / (known[high] - known[low])
    for end in (range(2 * reach + 1), range(len(values) - 2 * reach - 1, len(values))) if reach else ():
        points = [(i, v) for i in end if (v := values[i]) is not None]
        for i in (*end[:reach], *end[-reach:]):
            if result[i] is None and values[i] is not None:
                result[i] = _fitted_height(points, i)
    return result


def _fitted_height(points: Sequence[tuple[int, float]], at: int) -> float:
    """The height at `at` of the line closest to the points, no higher and no lower than they are."""
    x, y = (sum(part) / len(points) for part in zip(*points, strict=True))
    spread = sum((p[0] - x) ** 2 for p in points)
    slope = sum((p[0] - x) * (p[1] - y) for p in points) / spread if spread else 0.0
    heights = [p[1] for p in points]
    return min(max(y + slope * (at - x), min(heights)), max(heights))


def smoothing_window(number: int) -> int:
    """The number of values to smooth over: odd, about a sixteenth of them; 1 (no smoothing) for a short curve."""
    return 1 if number < 20 else number // 16 // 2 * 2 + 1


def thin_points(points: Sequence[tuple[float, float | None]], limit: int) -> list[tuple[float, float | None]]:
    """At most about `limit` of the points: the lowest and the highest of each of limit / 2 bins, in order.

    The first and the last point stay, and a bin without values stays a gap.
    """
    if len(points) <= limit:
        return list(points)
    bins = max(1, limit // 2)
    kept = {0, len(points) - 1}
    for b in range(bins):
        part = range(b * len(points) // bins, (b + 1) * len(points) // bins)
        known = [(v, i) for i in part if (v := points[i][1]) is not None]
        kept |= {min(known)[1], max(known)[1]} if known else {part[0]}
    return [points[i] for i in sorted(kept)]


def line_path(points: Sequence[tuple[float, float | None]], x: Axis, y: Axis) -> str:
    """SVG path data of a line, broken where a value is missing; an isolated value is a dot. y grows upwards."""
    text, pen, alone = [], False, False
    for at, value in points:
        if value is None or not y.shows(value):
            text += ["h0"] if alone else []
            pen = alone = False
            continue
        place = f"{_format_coordinate(x.at(at))} {_format_coordinate(y.size - y.at(value))}"
        text.append(f"L{place}" if pen else f"M{place}")
        pen, alone = True, not pen
    return "".join([*text, *(["h0"] if alone else [])])


def band_path(lower: Sequence[float], upper: Sequence[float], xs: Sequence[float], x: Axis, y: Axis) -> str:
    """SVG path data of the area between two lines over the same xs."""
    there = [
        f"{_format_coordinate(x.at(a))} {_format_coordinate(y.size - y.at(v))}" for a, v in zip(xs, upper, strict=True)
    ]
    back = [
        f"{_format_coordinate(x.at(a))} {_format_coordinate(y.size - y.at(v))}" for a, v in zip(xs, lower, strict=True)
    ]
    return f"M{'L'.join(there + back[::-1])}Z"


def _format_coordinate(value: float) -> str:
    text = f"{value:.1f}".removesuffix(".0")
    return "0" if text == "-0" else text
