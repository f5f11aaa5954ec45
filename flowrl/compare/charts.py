"""Mean curves with their standard errors as charts of the page, drawn like those of a run's report."""

from collections.abc import Sequence

from flowrl.compare.curves import Comparison, VariantCurve
from flowrl.compare.overview import Overview, axis_text
from flowrl.report import scales
from flowrl.report.figures import HEIGHT, WIDTH, Chart, DrawnCurve
from flowrl.report.numerals import format_compact
from flowrl.report.scales import Axis

COLOURS = 8  # of the page; a variant beyond them repeats an earlier one's
TITLES = {"seconds": "over seconds of training", "calls": "over {unit}-forwards"}


def reward_chart(overview: Overview, axis: str, reward: str) -> Chart | None:
    """A reward's mean curves over an axis; a mark shows where all runs are compared."""
    comparison = overview.comparison(axis, reward)
    if comparison is None:
        return None
    last = max(x for band in comparison.bands for x, _ in band.points)
    x = scales.iteration_axis(int(last + 0.999), WIDTH) if last >= 5 else scales.axis([0.0, last], WIDTH, zero=True)
    y = scales.axis(
        [e for b in comparison.bands for _, m in b.points for e in (m.value - m.error, m.value + m.error)], HEIGHT
    )
    title = f"{reward} {TITLES[axis].format(unit=overview.unit)}"
    return Chart(
        title=title,
        hint="held-out mean over seeds with its standard error, linear between evaluations",
        badge="witness, not trained" if reward in overview.witnesses else "",
        last="",
        note="",
        alt=f"{title}: " + "; ".join(map(_describe_band, comparison.bands)),
        drawn=[_draw_band(band, i, x, y) for i, band in enumerate(comparison.bands)],
        x_ticks=[(value / x.high * 100, text) for value, text in x.ticks],
        y_ticks=[((1 - y.at(value) / HEIGHT) * 100, text) for value, text in y.ticks],
        events=[
            (comparison.end / x.high * 100, "compared", f"compared at {axis_text(axis, comparison.end, overview.unit)}")
        ],
        window=1,
        data=_hover_data(comparison, x, "" if axis == "calls" else "second ", overview.unit),
    )


def colour_of(index: int) -> int:
    """The colour of the variant at this position."""
    return index % COLOURS + 1


def _draw_band(band: VariantCurve, index: int, x: Axis, y: Axis) -> DrawnCurve:
    xs = [at for at, _ in band.points]
    low, high = ([m.value + side * m.error for _, m in band.points] for side in (-1, 1))
    area = scales.band_path(low, high, xs, x, y) if any(m.error for _, m in band.points) else ""
    line = scales.line_path([(at, m.value) for at, m in band.points], x, y)
    return DrawnCurve(band.variant, colour_of(index), raw=line, area=area)


def _hover_data(comparison: Comparison, x: Axis, before: str, unit: str) -> dict:
    curves = [
        {
            "label": band.variant,
            "colour": colour_of(i),
            "x": [_round(at) for at, _ in band.points],
            "y": [_round(m.value) for _, m in band.points],
            "e": [_round(m.error) if m.number > 1 else None for _, m in band.points],
        }
        for i, band in enumerate(comparison.bands)
    ]
    after = f" {unit}-forwards" if comparison.axis == "calls" else ""
    return {"last": x.high, "curves": curves, "before": before, "after": after}


def _describe_band(band: VariantCurve) -> str:
    ends = ", ".join(
        f"{format_compact(mean.value)} at {format_compact(x)}" for x, mean in (band.points[0], band.points[-1])
    )
    return f"{band.variant} {ends}"


def _round(value: float) -> float:
    return float(f"{value:.5g}")


def cost_bars(overview: Overview, phases: Sequence[str]) -> list[tuple[str, float, list[tuple[str, float, float]]]]:
    """(variant, seconds of an iteration, (phase, seconds, percent of the longest variant's iteration) of each)."""
    longest = max((row.iteration for row in overview.rows), default=0.0) or 1.0
    return [
        (row.variant, row.iteration, [(p, row.seconds[p].value, row.seconds[p].value / longest * 100) for p in phases])
        for row in overview.rows
        if all(p in row.seconds for p in phases)
    ]
