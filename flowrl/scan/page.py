"""report.html of a scan: one self-contained page, in the style of a run's report."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from flowrl import __version__
from flowrl.core.evaluation import Mean
from flowrl.kinds import kind_of
from flowrl.media.pictures import to_pil
from flowrl.recipe.load import dump
from flowrl.report import numerals
from flowrl.report.figures import WIDTH, Chart, ChartCurve, ChartFrame, draw
from flowrl.report.glossary import meaning
from flowrl.report.scales import Axis
from flowrl.report.templates import template
from flowrl.report.thumbnails import encode_thumbnail
from flowrl.scan.draw import PromptSamples
from flowrl.scan.measures import ValueMeasures
from flowrl.scan.result import Scan

HERE = Path(__file__).parent
NAME = "report.html"
SIDE, QUALITY = 160, 75  # of pictures, longest side; see thumbnails
STOCHASTIC, REFERENCE, LIMIT = 1, 2, 6  # colours


@dataclasses.dataclass(frozen=True)
class ValueFrame(ChartFrame):
    """An x axis with evenly spaced positions for the scanned values."""

    labels: tuple[str, ...] = ()

    @property
    def x(self) -> Axis:
        """Value i at i + 0.5 on an axis from 0 to the number of values."""
        ticks = tuple((i + 0.5, label) for i, label in enumerate(self.labels))
        return Axis(0.0, float(len(self.labels)), WIDTH, ticks)


def write(scan: Scan, folder: Path) -> Path:
    """Writes the page into the scan's folder; returns its path."""
    path = folder / NAME
    path.write_text(render(scan), encoding="utf-8")
    return path


def render(scan: Scan) -> str:
    """The page as text. Text from prompts and models is escaped."""
    return template(HERE, "scan.html").render(_context(scan))


def _context(scan: Scan) -> dict[str, object]:
    return {
        "version": __version__,
        "scan": scan,
        "advice": scan.advice,
        "facts": _facts(scan),
        "rows": [_table_row(scan, row, _decimals(scan.rows)) for row in scan.rows],
        "short": scan.key.rpartition(".")[2],
        "unit": f"{kind_of(scan.recipe).words.forward}-forwards",
        "charts": [c for c in _charts(scan) if c is not None],
        "statistics": [c for c in _statistics(scan) if c is not None],
        "values": [
            (row.label, [_samples_context(shot) for shot in shots])
            for row, shots in zip(scan.rows, scan.shots, strict=True)
        ],
        "opened": scan.advice.label or scan.rows[len(scan.rows) // 2].label,
        "recipe": dump(scan.recipe),
    }


def _facts(scan: Scan) -> list[tuple[str, str]]:
    number, group = len(scan.prompts), scan.recipe.train.group
    facts = [
        ("Model", scan.recipe.model),
        ("Weights", scan.source),
        ("Each value", f"{number} training prompts × {group} samples"),
        ("Sampled as in", f"iteration {scan.iteration}"),
        ("Seed", str(scan.recipe.seed)),
        ("Time", numerals.format_duration(scan.seconds)),
    ]
    return facts


def _decimals(rows: Sequence[ValueMeasures]) -> int:
    """The decimals of the numbers in the table: enough for two digits of a typical error."""
    needed = [
        numerals.decimals_for(
            *(numerals.MeanWithError(*dataclasses.astuple(m)) for m in (r.spread, r.reward, r.quality))
        )
        for r in rows
    ]
    return statistics.median_low(needed)


def _table_row(scan: Scan, row: ValueMeasures, places: int) -> dict[str, str]:
    """A row of the table."""
    return {
        "label": row.label,
        "spread": _format_mean(row.spread, places),
        "silent": f"{row.silent:.0%}".replace("%", " %"),
        "reward": _format_mean(row.reward, places),
        "ode": _format_mean(row.ode, places),
        "quality": _format_mean(row.quality, places, signed=True),
        "distance": "" if row.distance is None else f"{row.distance.value:.3f}",
        "diversity": "" if row.diversity is None else f"{row.diversity:.3f}",
        "forwards": numerals.format_compact(row.forwards),
        "seconds": f"{row.seconds * 1000:.3g} ms" if row.seconds < 1 else f"{row.seconds:.2f} s",
        "verdict": scan.advice.verdicts[row.label],
        "chosen": "chosen" if row.label == scan.advice.label else "open" if row.label in scan.advice.open else "",
    }


def _format_mean(mean: Mean, places: int, *, signed: bool = False) -> str:
    if not mean.number:
        return "unknown"
    return numerals.format_with_error(
        numerals.MeanWithError(mean.value, mean.error, mean.number), places, signed=signed
    )


def _charts(scan: Scan) -> list[Chart | None]:
    rows, reference = scan.rows, scan.reference
    limit = _line("the tolerance", [-scan.advice.limit] * len(rows), LIMIT)
    words = kind_of(scan.recipe).words
    held = words.reference_sample
    return [
        _chart(
            scan,
            "Spread of the reward within a group",
            [_means("spread", [r.spread for r in rows])],
            "standard deviation of the reward within a group, mean over groups: what training learns from",
            zero=True,
        ),
        _chart(
            scan,
            f"Quality against {reference}",
            [_means("samples", [r.quality for r in rows]), limit],
            f"reward of the samples minus that of {reference} from the same initial noise",
            also=[0.0],
        ),
        _chart(
            scan,
            "Reward",
            [
                _means("samples", [r.reward for r in rows]),
                _means(reference, [r.ode for r in rows], REFERENCE),
            ],
            "weighted sum of the trained rewards, mean over prompts",
        ),
        _chart(
            scan,
            "Groups without any spread",
            [_line("share", [r.silent for r in rows], dots=True)],
            "share of groups that teach nothing because all their samples have the same score",
            zero=True,
        ),
        _chart(
            scan,
            "Distances between samples",
            [
                _line(f"from {held}", [None if r.distance is None else r.distance.value for r in rows], dots=True),
                _line("within a group", [r.diversity for r in rows], REFERENCE, dots=True),
            ],
            "share of texts that differ" if scan.texts else "root-mean-square pixel distances",
            zero=True,
        ),
        _chart(
            scan,
            f"{words.forwards.capitalize()} per sample",
            [_line("forwards", [r.forwards for r in rows], dots=True)],
            "counted while the samples were drawn",
            zero=True,
        ),
    ]


def _statistics(scan: Scan) -> list[Chart | None]:
    """Statistics of the samples, beside those of the reference."""
    charts = []
    for name in scan.rows[0].statistics:
        title = name.removeprefix("samples/").replace("_", " ").capitalize()
        curves = [_line("samples", [r.statistics.get(name) for r in scan.rows], dots=True)]
        other = [r.ode_statistics.get(name) for r in scan.rows]
        if any(v is not None for v in other):
            curves.append(_line(scan.reference, other, REFERENCE, dots=True))
        charts.append(_chart(scan, title, curves, meaning(name)))
    return charts


def _chart(
    scan: Scan, title: str, curves: Sequence[ChartCurve], hint: str, *, zero: bool = False, also: Sequence[float] = ()
) -> Chart | None:
    labels = tuple(row.label for row in scan.rows)
    chart = draw(ValueFrame(0, (), labels), title, curves, hint=hint, zero=zero, also=also)
    if chart is None:
        return None
    alt = f"{title}: " + "; ".join(_describe_curve(curve, labels) for curve in curves)
    places = {f"{i + 0.5:g}": f"{scan.key} = {label}" for i, label in enumerate(labels)}
    return dataclasses.replace(chart, alt=alt, last="", data=chart.data | {"places": places})


def _describe_curve(curve: ChartCurve, labels: Sequence[str]) -> str:
    pairs = zip(labels, curve.points, strict=True)
    return f"{curve.label} " + ", ".join(
        f"{numerals.format_compact(v)} at {label}" for label, (_, v) in pairs if v is not None
    )


def _means(label: str, means: Sequence[Mean], colour: int = STOCHASTIC) -> ChartCurve:
    errors = [m.error if m.number else None for m in means]
    return ChartCurve(label, _points([m.value if m.number else None for m in means]), colour, dots=True, errors=errors)


def _line(label: str, values: Sequence[float | None], colour: int = STOCHASTIC, *, dots: bool = False) -> ChartCurve:
    return ChartCurve(label, _points(values), colour, dots=dots)


def _points(values: Sequence[float | None]) -> list[tuple[float, float | None]]:
    return [(i + 0.5, value if value is None or value == value else None) for i, value in enumerate(values)]


def _samples_context(shot: PromptSamples) -> dict[str, object]:
    """A prompt's samples, the reference first, each with its reward."""
    pictures = [] if shot.pictures is None else [encode_thumbnail(to_pil(p), SIDE, QUALITY) for p in shot.pictures]
    texts = shot.texts or [None] * len(shot.rewards)
    rewards = [r if r == r else None for r in shot.rewards]
    samples = [(p, t, r) for p, t, r in zip(pictures or [None] * len(rewards), texts, rewards, strict=True)]
    return {"prompt": shot.prompt, "samples": samples}
