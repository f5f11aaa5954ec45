"""compare.png and samples.png, for slides and Markdown. They need matplotlib, the extra `compare`."""

import importlib.util
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image

from flowrl.compare.charts import COLOURS, TITLES
from flowrl.compare.collect import PHASES
from flowrl.compare.overview import AXES, Overview
from flowrl.compare.samples import SampleSheet
from flowrl.compare.tables import PHASE_WORDS

PALETTE = ("#0a67a3", "#c2490b", "#0a7a5a", "#9c3a83", "#80660a", "#6b7178", "#1c8a96", "#b5336b")  # as on the page
PHASE_COLOURS = {"rollout": PALETTE[0], "score": PALETTE[4], "train": PALETTE[2]}
PAPER, INK, RULE = "#fcfcfa", "#1b1d20", "#e3e3de"
DPI = 130
Axes = Any  # matplotlib's, which is an extra
TILE = 192  # pixels of a sample's longest side


def available() -> bool:
    """Whether plots can be drawn here."""
    return importlib.util.find_spec("matplotlib") is not None


def write_curves(overview: Overview, path: Path) -> None:
    """The curves of every reward over time and over calls, and the time per iteration by phase, as PNG."""
    from matplotlib.figure import Figure

    number = len(overview.rewards)
    figure = Figure(
        figsize=(12, 3.5 * number + 0.7 + 0.34 * len(overview.rows)), dpi=DPI, facecolor=PAPER, layout="constrained"
    )
    heights = [3.5] * number + [0.7 + 0.34 * len(overview.rows)]
    grid = figure.add_gridspec(number + 1, 2, height_ratios=heights)
    for i, reward in enumerate(overview.rewards):
        for j, axis in enumerate(AXES):
            _curves(figure.add_subplot(grid[i, j]), overview, axis, reward)
    _bars(figure.add_subplot(grid[number, :]), overview)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(4, len(labels)), frameon=False, labelcolor=INK)
    figure.savefig(path)


def _curves(plot: Axes, overview: Overview, axis: str, reward: str) -> None:
    comparison = overview.comparison(axis, reward)
    witness = " (witness, not trained)" if reward in overview.witnesses else ""
    _style_axes(plot, f"{reward}{witness}, held-out, {TITLES[axis].format(unit=overview.unit)}")
    if comparison is None:
        plot.text(0.5, 0.5, "not recorded", ha="center", transform=plot.transAxes)
        return
    for i, band in enumerate(comparison.bands):
        colour, xs = PALETTE[i % COLOURS], [x for x, _ in band.points]
        low, high = ([m.value + side * m.error for _, m in band.points] for side in (-1, 1))
        plot.fill_between(xs, low, high, color=colour, alpha=0.13, linewidth=0)
        style = "-" if i < COLOURS else "--"
        plot.plot(xs, [m.value for _, m in band.points], style, color=colour, label=band.variant, linewidth=1.6)
    plot.axvline(comparison.end, color="#5a5f66", linewidth=0.9, linestyle=(0, (4, 3)))
    plot.set_xlim(left=0)
    plot.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")


def _bars(plot: Axes, overview: Overview) -> None:
    """Seconds per iteration by phase, one bar per variant, the first on top."""
    _style_axes(plot, "seconds per iteration")
    names, left = [row.variant for row in overview.rows][::-1], [0.0] * len(overview.rows)
    for phase in PHASES:
        widths = [row.seconds[phase].value if phase in row.seconds else 0.0 for row in overview.rows][::-1]
        plot.barh(
            names, widths, left=left, height=0.66, color=PHASE_COLOURS[phase], alpha=0.85, label=PHASE_WORDS[phase]
        )
        left = [a + b for a, b in zip(left, widths, strict=True)]
    plot.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False, labelcolor=INK, borderaxespad=0.0)
    plot.grid(axis="y", visible=False)


def _style_axes(plot: Axes, title: str) -> None:
    plot.set_title(title, loc="left", fontsize=10, color=INK)
    plot.set_facecolor(PAPER)
    plot.grid(color=RULE, linewidth=0.8)
    plot.set_axisbelow(True)
    plot.tick_params(colors=INK, labelsize=9, length=0)
    for side in ("top", "right", "left"):
        plot.spines[side].set_visible(False)


def write_samples(sheet: SampleSheet, path: Path) -> None:
    """The samples of a sheet of pictures as PNG: one row per prompt, one column per variant."""
    from matplotlib.figure import Figure

    across, down = len(sheet.columns), len(sheet.rows)
    figure = Figure(figsize=(2.6 + 1.15 * across, 0.5 + 1.15 * down), dpi=DPI, facecolor=PAPER)
    left = 2.5 / figure.get_figwidth()
    places = figure.subplots(down, across, squeeze=False)
    figure.subplots_adjust(left, 0.01, 0.995, 1 - 0.5 / figure.get_figheight(), 0.05, 0.05)
    for i, (prompt, tiles) in enumerate(sheet.rows):
        for j, tile in enumerate(tiles):
            place = places[i][j]
            place.set_axis_off()
            picture = _open_picture(tile.folder / (tile.picture or ""))
            if picture is not None:
                smooth = "antialiased" if max(picture.size) >= TILE else "nearest"
                place.imshow(picture, interpolation=smooth)
            if i == 0:
                place.set_title(textwrap.fill(sheet.columns[j], 15), fontsize=8, color=INK)
        box = places[i][0].get_position()
        text = "\n".join(textwrap.wrap(prompt, 32)[:4])
        figure.text(0.01, (box.y0 + box.y1) / 2, text, fontsize=8, va="center", color=INK)
    figure.savefig(path)


def _open_picture(path: Path) -> Image.Image | None:
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except OSError:  # missing or damaged: leave its place empty
        return None
    picture.thumbnail((TILE, TILE))
    return picture
