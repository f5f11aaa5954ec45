"""compare.html: the comparison on one self-contained page, in the style of a run's report."""

import os
from pathlib import Path

from flowrl import __version__
from flowrl.compare import charts, tables
from flowrl.compare.collect import PHASES
from flowrl.compare.overview import AXES, Overview, headline, pair_sentences
from flowrl.compare.samples import SampleSheet, SampleTile
from flowrl.compare.verdict import RULE
from flowrl.report.evaluations import BUDGET
from flowrl.report.templates import template
from flowrl.report.thumbnails import QUALITIES, Thumbnail, thumbnail

HERE = Path(__file__).parent
NAME = "compare.html"
PHASE_COLOURS = {"rollout": 1, "score": 5, "train": 3}  # as in a run's report


def write(overview: Overview, sheet: SampleSheet | None, path: Path) -> None:
    """Writes the page, whole or not at all."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(render(overview, sheet, path.parent), encoding="utf-8")
    aside.replace(path)


def render(overview: Overview, sheet: SampleSheet | None, beside: Path) -> str:
    """The page as text; links to the runs' own reports are relative to the folder `beside`."""
    return template(HERE, "compare.html").render(_context(overview, sheet, beside))


def _context(overview: Overview, sheet: SampleSheet | None, beside: Path) -> dict[str, object]:
    phases = [p for p in PHASES if any(p in row.seconds for row in overview.rows)]
    compared = sum(o.problem is None for o in overview.outcomes)
    return {
        "version": __version__,
        "title": overview.title,
        "notes": overview.notes,
        "unit": overview.unit,
        "headline": headline(overview, "seconds", overview.rewards[0])
        if overview.comparisons
        else "No run has finished yet.",
        "state": f"{compared} of {len(overview.outcomes)} runs are compared, of {len(overview.rows)} variants.",
        "failures": overview.failures,
        "rewards": [_reward_context(overview, name) for name in overview.rewards],
        "held": tables.heldout_table(overview) if overview.rewards else None,
        "costs": tables.cost_table(overview),
        "bars": charts.cost_bars(overview, phases),
        "phases": [(tables.PHASE_WORDS[p], PHASE_COLOURS[p]) for p in phases],
        "colours": {p: PHASE_COLOURS[p] for p in phases},
        "drift": tables.drift_table(overview),
        "sheet": None
        if sheet is None
        else {"seed": sheet.seed, "columns": sheet.columns, "rows": _rows_with_pictures(sheet)},
        "runs": [(o, _report_link(o.folder, beside)) for o in overview.outcomes],
        "rule": RULE,
    }


def _reward_context(overview: Overview, name: str) -> dict[str, object]:
    axes = [axis for axis in AXES if overview.comparison(axis, name) is not None]
    return {
        "name": name,
        "witness": name in overview.witnesses,
        "charts": [c for axis in axes if (c := charts.reward_chart(overview, axis, name)) is not None],
        "findings": [(headline(overview, axis, name), pair_sentences(overview, axis, name)) for axis in axes],
    }


def _report_link(folder: Path, beside: Path) -> str | None:
    page = folder / "report.html"
    if not page.is_file():
        return None
    try:
        return Path(os.path.relpath(page, beside)).as_posix()
    except ValueError:  # another drive
        return None


def _rows_with_pictures(sheet: SampleSheet) -> list[tuple[str, list[tuple[SampleTile, Thumbnail | None]]]]:
    """The rows with their pictures, as large as the page can hold."""
    rows: list[tuple[str, list[tuple[SampleTile, Thumbnail | None]]]] = []
    for side, quality in QUALITIES:
        rows = [(prompt, [(tile, _picture(tile, side, quality)) for tile in tiles]) for prompt, tiles in sheet.rows]
        if sum(len(picture.uri) for _, tiles in rows for _, picture in tiles if picture) <= BUDGET:
            break
    return rows


def _picture(tile: SampleTile, side: int, quality: int) -> Thumbnail | None:
    return None if tile.picture is None else thumbnail(tile.folder, tile.picture, side, quality)
