"""`flowrl compare`: runs a grid of recipes, or reads finished runs, and shows them side by side."""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from flowrl.commands.common import TrustOption, silence_libraries
from flowrl.names import UserError
from flowrl.terminal import output_console

LOG_SECONDS = 30.0  # between two log lines about the runs in progress

if TYPE_CHECKING:
    from flowrl.compare.collect import RunOutcome
    from flowrl.compare.grid import Cell
    from flowrl.compare.overview import Overview


def compare_command(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE [KEY=VALUE]... | RUN...", help="A recipe and values for all runs, or run folders."
        ),
    ],
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=V1,V2", help="Run every value; repeated, every combination."),
    ] = None,
    variants: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML: names mapped to {KEY: VALUE} or to a list of KEY=VALUE.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per variant, from the recipe's seed on.")] = 1,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME|FORWARDS",
            help="90s, 3m, 2h: training time of each run; 66k, 2M: its row-forwards, where one counts three times with "
            "gradient. Evaluations are not counted.",
        ),
    ] = None,
    evaluations: Annotated[
        int, typer.Option(min=2, help="With --budget: evaluations per run, at equal intervals of it.")
    ] = 6,
    jobs: Annotated[int, typer.Option(min=1, help="Simultaneous runs; they slow each other down.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Folder for runs and results (default: runs/compare-RECIPE, or runs/compare)."
        ),
    ] = None,
    drift: Annotated[bool, typer.Option(help="Also load the weights and measure drift and diversity.")] = True,
    trust: TrustOption = False,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write or update this Markdown file, figures beside it.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the grid and its cost, and stop.")] = False,
    time_from: Annotated[
        Path | None, typer.Option(metavar="RUN", help="With --dry-run: an earlier run to estimate times from.")
    ] = None,
) -> None:
    """Compare variants of a recipe, or finished runs, at equal time and at equal model calls.

    Each run of a grid has its own folder, OUTPUT/VARIANT/seed-N; the same command resumes an interrupted grid. Results
    are written to OUTPUT: compare.html, compare.png, samples.png, curves.csv, summary.csv.
    """
    folders = [Path(t) for t in targets if Path(t).is_dir()]
    if folders:
        if len(folders) < len(targets) or vary or variants or budget or dry_run:
            other = next((repr(t) for t in targets if not Path(t).is_dir()), "an option of a grid")
            raise UserError(f"compare: got run folders and {other}; give only run folders, or a recipe and values")
        _folders(folders, output, drift, markdown, trust or not drift)
        return
    if time_from is not None and not dry_run:
        raise UserError("--time-from: applies only with --dry-run; add it, or leave --time-from out")
    cells, output = _grid(targets, vary or [], variants, seeds, budget, evaluations, jobs, output)
    if dry_run:
        _plan(cells, time_from, jobs)
        return
    failed = _run(cells, jobs, output)
    from flowrl.compare.collect import grid_outcomes

    notes = _notes(output, budget)
    if _show(grid_outcomes(cells, failed), f"Variants of {Path(targets[0]).stem}", output, notes, drift, markdown):
        raise typer.Exit(1)


def _folders(folders: Sequence[Path], output: Path | None, drift: bool, markdown: Path | None, trust: bool) -> None:
    """Compares finished runs; results of runs in one folder go there. Without drift, none of their code is imported."""
    from flowrl.compare.collect import folder_outcomes
    from flowrl.recipe.trust import refuse_untrusted

    outcomes = folder_outcomes(folders)
    for one in outcomes if not trust else ():
        refuse_untrusted(one.folder, ["track=null"])

    whole = folders[0] if len(folders) == 1 and not (folders[0] / "recipe.yaml").is_file() else None
    output = output or whole or Path("runs/compare")
    notes = [] if whole is None else _notes(whole, None)
    title = "flowrl runs" if whole is None else whole.resolve().name
    if _show(outcomes, title, output, notes, drift, markdown):
        raise typer.Exit(1)


def _grid(
    targets: Sequence[str],
    vary: Sequence[str],
    file: Path | None,
    seeds: int,
    budget: str | None,
    evaluations: int,
    jobs: int,
    output: Path | None,
) -> "tuple[list[Cell], Path]":
    from flowrl.compare import grid
    from flowrl.compare.execute import share_threads

    recipe, *overrides = targets
    if stray := next((o for o in overrides if "=" not in o), None):
        raise UserError(f"compare: got {stray!r} after {recipe}; accepted: KEY=VALUE, or run folders alone")
    output = output or Path("runs") / f"compare-{Path(recipe).stem}"
    limit = None if budget is None else grid.parse_budget(budget, evaluations)
    cells = grid.make_cells(
        recipe,
        overrides,
        grid.make_variants(vary, file),
        seeds=seeds,
        output=output,
        budget=limit,
        threads=share_threads(jobs),
    )
    return cells, output


def _plan(cells: "Sequence[Cell]", time_from: Path | None, jobs: int) -> None:
    """Prints the runs of the grid and what they cost."""
    silence_libraries()
    from flowrl.compare import costs
    from flowrl.compare.tables import terminal_table
    from flowrl.planning.duration import measured_pace
    from flowrl.reading.inputs import read_prompts

    earlier = time_from or costs.finished_run(cells)
    pace = None if earlier is None else measured_pace(earlier)
    number = len(read_prompts(cells[0].recipe)[1])
    console = output_console()
    console.print(terminal_table(costs.plan_table(cells, pace, number), f"{len(cells)} runs"))
    console.print(costs.remaining_time(cells, pace, number, jobs), soft_wrap=True)


def _run(cells: "Sequence[Cell]", jobs: int, output: Path) -> dict[Path, str]:
    """Runs what is left of the grid and shows progress; ends the command after a signal."""
    from flowrl.compare.execute import execute, is_done, progress_of
    from flowrl.runs.stopping import Stopped, Stopping

    console = output_console(soft_wrap=True)
    left = [cell for cell in cells if not is_done(cell)]
    if jobs > 1 and left:
        output.mkdir(parents=True, exist_ok=True)
        (output / "concurrent").write_text(f"{jobs}\n", encoding="utf-8")
        console.print(f"{jobs} runs share this machine at once, so compare their calls: their times affect each other")
    running: list[Cell] = []
    logged = [time.monotonic()]  # when a line was last logged
    with console.status(f"{len(left)} of {len(cells)} runs to do") as status:

        def report(cell: "Cell", what: str) -> None:
            running.append(cell) if what in ("starts", "resumes") else running.remove(cell)
            console.print(f"{cell}: {what}", markup=False)

        def look() -> None:
            shown = ", ".join(f"{cell} ({progress_of(cell)})" for cell in running)
            line = f"{sum(map(is_done, left))} of {len(left)} runs done; {shown}"
            status.update(escape(line))
            if not console.is_terminal and time.monotonic() - logged[0] > LOG_SECONDS:
                logged[0] = time.monotonic()
                console.print(line, markup=False)

        try:
            return execute(
                left,
                jobs,
                report,
                Stopping(lambda name: console.print(f"{name}: the runs save a checkpoint and end")),
                look,
            )
        except Stopped as stop:
            console.print("stopped; run the same command again to resume")
            raise typer.Exit(stop.code) from None


def _notes(output: Path, budget: str | None) -> list[str]:
    """Notes that a reader of the results needs."""
    from flowrl.compare.grid import parse_budget

    notes = []
    if budget and (forwards := parse_budget(budget).forwards) is not None:
        notes.append(f"Each run took at most {forwards:,.0f} forwards, those of evaluations not counted.")
    elif budget:
        notes.append(f"Each run trained for {budget}; loading, evaluations and checkpoints are not counted.")
    if (output / "concurrent").is_file():
        notes.append(
            "Several runs shared the machine at once, so their times affected each other; their calls did not."
        )
    return notes


def _show(
    outcomes: "list[RunOutcome]", title: str, output: Path, notes: list[str], drift: bool, markdown: Path | None
) -> bool:
    """Measures, writes and prints everything; returns whether any run is left out."""
    from flowrl.compare import markdown as markdown_file
    from flowrl.compare import page, plots, tables
    from flowrl.compare.overview import make_overview
    from flowrl.compare.samples import make_sheet

    results = make_overview(title, outcomes, _drifts(outcomes) if drift else {}, notes)
    shown = make_sheet(outcomes)
    try:
        output.mkdir(parents=True, exist_ok=True)
        tables.write_curves(results, output / "curves.csv")
        tables.write_summary(results, output / "summary.csv")
        page.write(results, shown, output / page.NAME)
        if plots.available() and results.rewards:
            plots.write_curves(results, output / "compare.png")
            if shown is not None and shown.pictures:
                plots.write_samples(shown, output / "samples.png")
        if markdown is not None:
            markdown_file.write(results, shown, markdown, shlex.join(["flowrl", *sys.argv[1:]]))
    except OSError as error:
        raise UserError(f"{error.filename or output}: cannot be written ({error.strerror}); name another") from error
    _print(results, output)
    return bool(results.failures)


def _drifts(outcomes: "list[RunOutcome]") -> dict[Path, dict[str, float | None]]:
    """Drift of every compared run, under the plan of the first one's recipe."""
    from flowrl.recipe.load import load

    compared = [o for o in outcomes if o.problem is None]
    if not compared:
        return {}
    silence_libraries()
    from flowrl.compare.drift import DriftSettings, measure_cached

    settings = DriftSettings.of(load(str(compared[0].folder / "recipe.yaml"), ["track=null"]))
    drifts = {}
    with output_console().status("") as status:
        for i, one in enumerate(compared):
            status.update(f"measuring drift of run {i + 1} of {len(compared)}")
            drifts[one.folder] = measure_cached(one.folder, settings)
    return drifts


def _print(results: "Overview", output: Path) -> None:
    from flowrl.compare import plots, tables
    from flowrl.compare.overview import AXES, headline

    console = output_console()
    if results.rewards:
        console.print(
            tables.terminal_table(tables.heldout_table(results), "held-out, mean over seeds ± standard error")
        )
        console.print(tables.terminal_table(tables.cost_table(results), "cost per iteration"))
    if (drift := tables.drift_table(results)) is not None:
        console.print(tables.terminal_table(drift, "drift from the base model, and diversity"))
    for reward in results.rewards:
        for axis in AXES:
            if results.comparison(axis, reward) is not None:
                console.print(headline(results, axis, reward), markup=False, soft_wrap=True)
    for one in results.failures:
        console.print(f"not compared: {one.variant}, seed {one.seed}: {one.problem}", markup=False, soft_wrap=True)
    if not plots.available():
        console.print("no PNG was written: pip install matplotlib")
    console.print(f"{output / 'compare.html'}", markup=False, soft_wrap=True)
