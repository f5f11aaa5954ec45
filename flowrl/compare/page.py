"""compare.html: the comparison on one page that stands alone, in the style of a run's report."""

import os
from pathlib import Path
from typing import Any

import jinja2

from flowrl import __version__
from flowrl.compare import charts, tables
from flowrl.compare.collect import PHASES
from flowrl.compare.overview import AXES, Overview, headline, sentences
from flowrl.compare.samples import Sheet, Tile
from flowrl.compare.verdict import RULE
from flowrl.report import numerals
from flowrl.report.evaluations import BUDGET
from flowrl.report.thumbnails import QUALITIES, Thumbnail, thumbnail

HERE = Path(__file__).parent
REPORT = HERE.parent / "report"
NAME = "compare.html"
PHASE_COLOURS = {"rollout": 1, "score": 5, "train": 3}  # as in a run's report


def write(of: Overview, sheet: Sheet | None, path: Path) -> None:
    """Writes the page, whole or not at all."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(render(of, sheet, path.parent), encoding="utf-8")
    aside.replace(path)


def render(of: Overview, sheet: Sheet | None, beside: Path) -> str:
    """The page as text; links to the runs' own reports are relative to the folder `beside`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([HERE, REPORT]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["score"] = numerals.format_score
    return environment.get_template("compare.html").render(_context(of, sheet, beside))


def _context(of: Overview, sheet: Sheet | None, beside: Path) -> dict[str, Any]:
    phases = [p for p in PHASES if any(p in row.seconds for row in of.rows)]
    compared = sum(o.problem is None for o in of.outcomes)
    return {
        "version": __version__,
        "title": of.title,
        "notes": of.notes,
        "unit": of.unit,
        "headline": headline(of, "seconds", of.rewards[0]) if of.comparisons else "No run has come to its end yet.",
        "state": f"{compared} of {len(of.outcomes)} runs are compared, of {len(of.rows)} variants.",
        "failures": of.failures,
        "rewards": [_reward(of, name) for name in of.rewards],
        "held": tables.held(of) if of.rewards else None,
        "costs": tables.costs(of),
        "bars": charts.bars(of, phases),
        "phases": [(tables.PHASE_WORDS[p], PHASE_COLOURS[p]) for p in phases],
        "colours": {p: PHASE_COLOURS[p] for p in phases},
        "drift": tables.drift(of),
        "sheet": None if sheet is None else {"seed": sheet.seed, "columns": sheet.columns, "rows": _shown(sheet)},
        "runs": [(o, _report(o.folder, beside)) for o in of.outcomes],
        "rule": RULE,
    }


def _reward(of: Overview, name: str) -> dict[str, Any]:
    axes = [axis for axis in AXES if of.comparison(axis, name) is not None]
    return {
        "name": name,
        "witness": name in of.witnesses,
        "charts": [c for axis in axes if (c := charts.chart(of, axis, name)) is not None],
        "told": [(headline(of, axis, name), sentences(of, axis, name)) for axis in axes],
    }


def _report(folder: Path, beside: Path) -> str | None:
    page = folder / "report.html"
    if not page.is_file():
        return None
    try:
        return Path(os.path.relpath(page, beside)).as_posix()
    except ValueError:  # another drive
        return None


def _shown(sheet: Sheet) -> list[tuple[str, list[tuple[Tile, Thumbnail | None]]]]:
    """The rows with their pictures, as large as the page can hold."""
    rows: list[tuple[str, list[tuple[Tile, Thumbnail | None]]]] = []
    for side, quality in QUALITIES:
        rows = [(prompt, [(tile, _picture(tile, side, quality)) for tile in tiles]) for prompt, tiles in sheet.rows]
        if sum(len(picture.uri) for _, tiles in rows for _, picture in tiles if picture) <= BUDGET:
            break
    return rows


def _picture(tile: Tile, side: int, quality: int) -> Thumbnail | None:
    return None if tile.picture is None else thumbnail(tile.folder, tile.picture, side, quality)
