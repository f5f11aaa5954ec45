"""Mean courses with their standard errors as charts of the page, drawn as those of a run's report are."""

from collections.abc import Sequence

from flowrl.compare.curves import Band, Comparison
from flowrl.compare.overview import Overview, place
from flowrl.report import scales
from flowrl.report.figures import HEIGHT, WIDTH, Chart, DrawnCurve
from flowrl.report.numerals import format_compact
from flowrl.report.scales import Axis

COLOURS = 8  # of the page; a variant beyond them has an earlier one's
TITLES = {"seconds": "over seconds of training", "calls": "over {unit}-forwards"}


def chart(of: Overview, axis: str, reward: str) -> Chart | None:
    """A reward's mean courses over an axis; the mark stands where all runs are compared."""
    found = of.comparison(axis, reward)
    if found is None:
        return None
    last = max(x for band in found.bands for x, _ in band.points)
    x = scales.iteration_axis(int(last + 0.999), WIDTH) if last >= 5 else scales.axis([0.0, last], WIDTH, zero=True)
    y = scales.axis(
        [e for b in found.bands for _, m in b.points for e in (m.value - m.error, m.value + m.error)], HEIGHT
    )
    title = f"{reward} {TITLES[axis].format(unit=of.unit)}"
    return Chart(
        title=title,
        hint="held-out mean over seeds with its standard error, linear between evaluations",
        badge="witness, not trained" if reward in of.witnesses else "",
        last="",
        note="",
        alt=f"{title}: " + "; ".join(map(_in_words, found.bands)),
        drawn=[_drawn(band, i, x, y) for i, band in enumerate(found.bands)],
        x_ticks=[(value / x.high * 100, text) for value, text in x.ticks],
        y_ticks=[((1 - y.at(value) / HEIGHT) * 100, text) for value, text in y.ticks],
        events=[(found.end / x.high * 100, "compared", f"compared at {place(axis, found.end, of.unit)}")],
        window=1,
        data=_told(found, x, "" if axis == "calls" else "second ", of.unit),
    )


def colour(index: int) -> int:
    """The colour of the variant at this place."""
    return index % COLOURS + 1


def _drawn(band: Band, index: int, x: Axis, y: Axis) -> DrawnCurve:
    xs = [at for at, _ in band.points]
    low, high = ([m.value + side * m.error for _, m in band.points] for side in (-1, 1))
    area = scales.band_path(low, high, xs, x, y) if any(m.error for _, m in band.points) else ""
    line = scales.line_path([(at, m.value) for at, m in band.points], x, y)
    return DrawnCurve(band.variant, colour(index), raw=line, area=area)


def _told(found: Comparison, x: Axis, before: str, unit: str) -> dict:
    curves = [
        {
            "label": band.variant,
            "colour": colour(i),
            "x": [_rounded(at) for at, _ in band.points],
            "y": [_rounded(m.value) for _, m in band.points],
            "e": [_rounded(m.error) if m.number > 1 else None for _, m in band.points],
        }
        for i, band in enumerate(found.bands)
    ]
    after = f" {unit}-forwards" if found.axis == "calls" else ""
    return {"last": x.high, "curves": curves, "before": before, "after": after}


def _in_words(band: Band) -> str:
    ends = ", ".join(
        f"{format_compact(mean.value)} at {format_compact(x)}" for x, mean in (band.points[0], band.points[-1])
    )
    return f"{band.variant} {ends}"


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def bars(of: Overview, phases: Sequence[str]) -> list[tuple[str, float, list[tuple[str, float, float]]]]:
    """(variant, seconds of an iteration, (phase, seconds, percent of the longest variant's iteration) of each)."""
    longest = max((row.iteration for row in of.rows), default=0.0) or 1.0
    return [
        (row.variant, row.iteration, [(p, row.seconds[p].value, row.seconds[p].value / longest * 100) for p in phases])
        for row in of.rows
        if all(p in row.seconds for p in phases)
    ]
