"""Charts as numbers for the template: paths in a box of 1000 x 400, ticks and events in percent of it.

The page stretches the box to fit, while lines keep their width and labels, which are HTML text beside it, keep their
size: the same chart works on a phone and on a desktop.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from flowrl.report import scales
from flowrl.report.numerals import format_compact
from flowrl.report.scales import Axis

WIDTH, HEIGHT = 1000.0, 400.0
CROWDED_FROM = 20  # dots; more than these are drawn smaller
MAX_DRAWN_POINTS = 600  # of a curve
MAX_HOVER_POINTS = 1000  # of a curve, shown when the pointer is on it


@dataclass(frozen=True)
class ChartCurve:
    """A curve to draw: (iteration, value) points, joined; with dots (and error bars) if each is one measurement."""

    label: str
    points: Sequence[tuple[float, float | None]]
    colour: int = 1
    dots: bool = False
    hollow: bool = False
    errors: Sequence[float | None] = ()


@dataclass(frozen=True)
class ChartEvent:
    """Something that happened at an iteration: an `alarm` or a `resume`."""

    iteration: int
    kind: str
    text: str


@dataclass(frozen=True)
class DrawnCurve:
    """A curve as SVG path data: the values themselves, the smoothed curve, error bars."""

    label: str
    colour: int
    raw: str = ""
    smoothed: str = ""
    bars: str = ""
    dots: str = ""
    area: str = ""
    hollow: bool = False
    many: bool = False


@dataclass(frozen=True)
class Chart:
    """A chart, ready for the template. x_ticks, y_ticks: (percent from the left or the top, text)."""

    title: str
    hint: str
    badge: str
    last: str
    note: str
    alt: str
    drawn: list[DrawnCurve]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    events: list[tuple[float, str, str]]
    window: int
    data: dict[str, object] = field(repr=False)


@dataclass(frozen=True)
class ChartFrame:
    """What all charts of a page share: the last iteration, and events before it."""

    last: int
    events: Sequence[ChartEvent] = ()

    @property
    def x(self) -> Axis:
        """The axis of iterations."""
        return scales.iteration_axis(self.last, WIDTH)


def draw(
    frame: ChartFrame,
    title: str,
    curves: Sequence[ChartCurve],
    *,
    hint: str = "",
    badge: str = "",
    log: bool = False,
    zero: bool = False,
    also: Iterable[float] = (),
) -> Chart | None:
    """A chart of curves; None where none of them has a value.

    log: use a logarithmic axis if the values span a decade. zero: the axis begins at 0. also: further values that the
    axis must cover, so that several charts share one axis.
    """
    curves = [c for c in curves if any(v is not None for _, v in c.points)]
    if not curves:
        return None
    y = scales.axis([*_extent(curves), *also], HEIGHT, zero=zero, log=log)
    window = max((scales.smoothing_window(len(c.points)) for c in curves if not c.dots), default=1)
    return Chart(
        title=title,
        hint=hint,
        badge=badge,
        last=_last_value(curves),
        note=_note(curves, y),
        alt=f"{title}: " + "; ".join(_describe_curve(c) for c in curves),
        drawn=[_draw_curve(c, frame.x, y) for c in curves],
        x_ticks=[(value / frame.x.high * 100, text) for value, text in frame.x.ticks],
        y_ticks=[((1 - y.at(value) / HEIGHT) * 100, text) for value, text in y.ticks],
        events=event_marks(frame),
        window=window,
        data={"last": frame.x.high, "curves": [_hover_data(c, log=y.log) for c in curves]},
    )


def stack(frame: ChartFrame, title: str, curves: Sequence[ChartCurve], *, hint: str = "") -> Chart | None:
    """A chart of stacked areas, smoothed; all curves have the same iterations. None where there are no curves."""
    if not curves or not curves[0].points:
        return None
    xs = [x for x, _ in curves[0].points]
    window = scales.smoothing_window(len(xs))
    smooth = [scales.smooth([v or 0.0 for _, v in c.points], window) for c in curves]
    step = max(1, len(xs) // (MAX_DRAWN_POINTS // 2))
    kept = sorted({*range(0, len(xs), step), len(xs) - 1})
    floor, layers = [0.0] * len(kept), []
    for column in smooth:
        top = [low + (column[i] or 0.0) for low, i in zip(floor, kept, strict=True)]
        layers.append((floor, top))
        floor = top
    y = scales.axis(floor, HEIGHT, zero=True)
    at = [xs[i] for i in kept]
    areas = [
        DrawnCurve(c.label, c.colour, area=scales.band_path(low, top, at, frame.x, y))
        for c, (low, top) in zip(curves, layers, strict=True)
    ]
    return Chart(
        title=title,
        hint=hint,
        badge="",
        last="",
        note="seconds",
        alt=f"{title}, stacked: " + "; ".join(_describe_curve(c) for c in curves),
        drawn=areas,
        x_ticks=[(value / frame.x.high * 100, text) for value, text in frame.x.ticks],
        y_ticks=[((1 - y.at(value) / HEIGHT) * 100, text) for value, text in y.ticks],
        events=event_marks(frame),
        window=window,
        data={"last": frame.x.high, "curves": [_hover_data(c) for c in curves]},
    )


def event_marks(frame: ChartFrame) -> list[tuple[float, str, str]]:
    """(percent from the left, kind, text) of events, one per kind and iteration."""
    texts: dict[tuple[str, int], str] = {}
    for event in frame.events:
        key = event.kind, event.iteration
        texts[key] = f"{texts[key]}; {event.text}" if key in texts else event.text
    return [(min(100.0, i / frame.x.high * 100), kind, text) for (kind, i), text in texts.items()]


def _extent(curves: Sequence[ChartCurve]) -> list[float]:
    """Every value, and the ends of its error bar."""
    values = []
    for curve in curves:
        values += [v for _, v in curve.points if v is not None]
        for (_, v), e in zip(curve.points, curve.errors, strict=False):
            values += [v - e, v + e] if v is not None and e is not None else []
    return values


def _note(curves: Sequence[ChartCurve], y: Axis) -> str:
    """A note on what the drawing leaves out."""
    values = [v for c in curves for _, v in c.points]
    lost, hidden = values.count(None), sum(v is not None and not y.shows(v) for v in values)
    words = [f"{lost} not finite"] if lost else []
    return ", ".join(words + (["log, zeros left out" if hidden else "log"] if y.log else []))


def _draw_curve(curve: ChartCurve, x: Axis, y: Axis) -> DrawnCurve:
    line = scales.line_path(scales.thin_points(curve.points, MAX_DRAWN_POINTS), x, y)
    if curve.dots:
        dots = "".join(scales.line_path([p], x, y) for p in curve.points)
        many = len(curve.points) > CROWDED_FROM
        return DrawnCurve(
            curve.label, curve.colour, line, "", _error_bars(curve, x, y), dots, hollow=curve.hollow, many=many
        )
    smooth = _smooth_curve(curve, log=y.log)
    course = scales.line_path(scales.thin_points(smooth, MAX_DRAWN_POINTS), x, y) if smooth else ""
    return DrawnCurve(curve.label, curve.colour, line, course)


def _smooth_curve(curve: ChartCurve, *, log: bool) -> list[tuple[float, float | None]]:
    """The smoothed curve, empty for a short one. On a log axis logarithms are smoothed, and zeros are left out."""
    window = scales.smoothing_window(len(curve.points))
    values = [v for _, v in curve.points]
    if log:
        logs = scales.smooth([math.log10(v) if v is not None and v > 0 else None for v in values], window)
        values = [None if v is None else 10.0**v for v in logs]
    else:
        values = scales.smooth(values, window)
    return [] if window == 1 else [(at, v) for (at, _), v in zip(curve.points, values, strict=True)]


def _error_bars(curve: ChartCurve, x: Axis, y: Axis) -> str:
    ends = []
    for (at, value), error in zip(curve.points, curve.errors, strict=False):
        if value is not None and error is not None and y.shows(value - error):
            ends.append(scales.line_path([(at, value - error), (at, value + error)], x, y))
    return "".join(ends)


def _hover_data(curve: ChartCurve, *, log: bool = False) -> dict[str, object]:
    """A curve's numbers, shown when the pointer is on it."""
    points = scales.thin_points(curve.points, MAX_HOVER_POINTS)
    data: dict[str, object] = {
        "label": curve.label,
        "colour": curve.colour,
        "x": [x for x, _ in points],
        "y": [_round(v) for _, v in points],
    }
    if curve.errors:
        data["e"] = [_round(e) for e in curve.errors][: len(points)]
    if not curve.dots and (smooth := dict(_smooth_curve(curve, log=log))):
        data["s"] = [_round(smooth[x]) for x, _ in points]
    return data


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _last_value(curves: Sequence[ChartCurve]) -> str:
    """The last value of a chart's only curve."""
    known = [v for _, v in curves[0].points if v is not None]
    return format_compact(known[-1]) if len(curves) == 1 else ""


def _describe_curve(curve: ChartCurve) -> str:
    known = [(x, v) for x, v in curve.points if v is not None]
    (x0, first), (x1, last) = known[0], known[-1]
    low, high = min(v for _, v in known), max(v for _, v in known)
    return (
        f"{curve.label} {format_compact(first)} at iteration {x0:g}, {format_compact(last)} at iteration {x1:g}, "
        f"between {format_compact(low)} and {format_compact(high)}"
    )
