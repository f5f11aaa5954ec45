"""A comparison as tables: in the terminal, as CSV, and as rows of text for the page and the Markdown."""

import csv
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from flowrl.compare.collect import PHASES
from flowrl.compare.overview import AXES, DRIFT, Overview, VariantRow, format_mean
from flowrl.report.numerals import MeanWithError, format_duration

PHASE_WORDS = {"rollout": "rollout", "score": "scoring", "train": "training"}
DRIFT_WORDS = {
    "kl": "KL from base",
    "distance": "distance from base",
    "diversity_base": "diversity, base",
    "diversity": "diversity",
}
CsvValue = str | int | float | None
TextTable = tuple[list[str], list[list[str]]]  # column heads, one row per variant


def heldout_table(overview: Overview) -> TextTable:
    """Held-out means at equal time and at equal calls."""
    columns = [(axis, reward) for reward in overview.rewards for axis in AXES if overview.comparison(axis, reward)]
    heads = ["variant", "seeds", *(_column_head(overview, axis, reward) for axis, reward in columns)]
    rows = []
    for row in overview.rows:
        cells = [format_mean(row.held.get(c), *_column(overview, c)) for c in columns]
        rows.append([row.variant, str(row.runs), *cells])
    return heads, rows


def cost_table(overview: Overview) -> TextTable:
    """Iterations and the cost of one: seconds by phase and calls of the model."""
    phases = [p for p in PHASES if any(p in row.seconds for row in overview.rows)]
    heads = ["variant", "iterations", "seconds each", *(PHASE_WORDS[p] for p in phases), f"{overview.unit}s each"]
    rows = []
    for row in overview.rows:
        cells = [format_mean(row.seconds.get(p), short=True) for p in phases]
        number = format_mean(row.iterations, short=True)
        whole = f"{row.iteration:.3g}" if row.seconds else "\N{EN DASH}"
        calls = "\N{EN DASH}" if row.calls is None else f"{row.calls.value:,.0f}"
        rows.append([row.variant, number, whole, *cells, calls])
    return heads, rows


def drift_table(overview: Overview) -> TextTable | None:
    """Drift from the base model and diversity; None if nothing was measured."""
    names = [n for n in DRIFT if any(n in row.drift for row in overview.rows)]
    if not names:
        return None
    heads = ["variant", *(DRIFT_WORDS[n] for n in names)]
    return heads, [[row.variant, *(format_mean(row.drift.get(n), short=True) for n in names)] for row in overview.rows]


def run_table(overview: Overview) -> TextTable:
    """Every run: whether it is compared, and if not, why."""
    heads = ["variant", "seed", "iterations", "state", "folder"]
    rows = []
    for o in overview.outcomes:
        number = "\N{EN DASH}" if o.data is None else str(o.data.last)
        rows.append([o.variant, str(o.seed), number, o.problem or "finished", str(o.folder)])
    return heads, rows


def _column_head(overview: Overview, axis: str, reward: str) -> str:
    """A reward and where it is compared: `shapes, 180 s` or `shapes, 64,000 rows`."""
    comparison = overview.comparison(axis, reward)
    end = 0.0 if comparison is None else comparison.end
    return f"{reward}, {format_duration(end) if axis == 'seconds' else f'{end:,.0f} {overview.unit}s'}"


def _column(overview: Overview, column: tuple[str, str]) -> list[MeanWithError]:
    return [row.held[column] for row in overview.rows if column in row.held]


def terminal_table(words: TextTable, title: str) -> Table:
    """A table for the terminal."""
    heads, rows = words
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i == 0 else "right", overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def markdown_table(words: TextTable) -> str:
    """A table in GitHub's Markdown."""
    heads, rows = words
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def write_curves(overview: Overview, path: Path) -> None:
    """curves.csv: one line per evaluation of a finished run."""
    heads = ["variant", "seed", "iteration", "seconds", "calls", *overview.rewards]
    rows = [
        [o.variant, o.seed, m.iteration, m.seconds, m.calls, *(m.rewards.get(name) for name in overview.rewards)]
        for o in overview.outcomes
        if o.problem is None
        for m in o.points
    ]
    _write_csv(path, heads, rows)


def write_summary(overview: Overview, path: Path) -> None:
    """summary.csv: one line per variant, each mean beside its standard error over seeds (empty for one seed)."""
    compared = [(c.axis, c.reward, c.end) for c in overview.comparisons]
    heads = ["variant", "seeds", "iterations"]
    for axis, reward, _ in compared:
        heads += [f"{reward}@{axis}", f"{reward}@{axis}/error", f"{reward}@{axis}/at"]
    heads += [x for p in PHASES for x in (f"time_{p}", f"time_{p}/error")] + ["calls_per_iteration"]
    heads += [x for n in DRIFT for x in (n, f"{n}/error")]
    _write_csv(path, heads, [_summary_row(row, compared) for row in overview.rows])


def _summary_row(row: VariantRow, compared: Sequence[tuple[str, str, float]]) -> list[CsvValue]:
    cells: list[CsvValue] = [row.variant, row.runs, None if row.iterations is None else row.iterations.value]
    for axis, reward, end in compared:
        cells += [*_value_and_error(row.held.get((axis, reward))), end]
    for phase in PHASES:
        cells += _value_and_error(row.seconds.get(phase))
    cells.append(None if row.calls is None else row.calls.value)
    for name in DRIFT:
        cells += _value_and_error(row.drift.get(name))
    return cells


def _value_and_error(value: MeanWithError | None) -> list[float | None]:
    return [None, None] if value is None else [value.value, value.error if value.number > 1 else None]


def _write_csv(path: Path, heads: Sequence[str], rows: Sequence[Sequence[CsvValue]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(heads)
        writer.writerows(rows)
