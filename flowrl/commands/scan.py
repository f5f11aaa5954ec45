"""`flowrl scan`: the effect of each value of a sampling key on groups of samples, without training."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich import progress as bars
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowrl.commands.common import RecipeArgument, WeightsOption, silence_libraries
from flowrl.names import UserError
from flowrl.terminal import output_console

if TYPE_CHECKING:
    from flowrl.core.evaluation import Mean
    from flowrl.recipe.schema import Recipe
    from flowrl.scan.result import Scan
    from flowrl.scan.values import ScannedValue

SHOWN_PROMPTS, MEMBERS, TEXTS = 8, 8, 3  # prompts whose samples are kept, and how many of each: pictures, texts


def scan_command(
    recipe: RecipeArgument,
    values: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUES [KEY=VALUE]...",
            help="One key with several values, FIRST:LAST:NUMBER or a list with commas, and other recipe values.",
        ),
    ],
    prompts: Annotated[int, typer.Option(min=2, help="Training prompts; every value samples one group for each.")] = 64,
    group: Annotated[int | None, typer.Option(min=2, help="Samples per group (default: train.group).")] = None,
    iteration: Annotated[int, typer.Option(min=0, help="Sample as in this training iteration.")] = 0,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Largest allowed loss, in standard deviations of the ODE's reward.")
    ] = 0.2,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the noise (default: the recipe's).")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default: runs/scan-RECIPE-KEY.")] = None,
    model_run: Annotated[Path | None, typer.Option(metavar="RUN", help="Sample with the weights of this run.")] = None,
    weights: WeightsOption = "final",
) -> None:
    """Sample groups at several values of one sampling key, without training, and recommend a value.

    Shows for each value the spread of rewards within a group (what training learns from), the loss of quality against
    the ODE (for a language model: greedy decoding) at equal seeds, samples, time and cost. Keys: sampler.*,
    generation.*, pipeline.*; the prompts are the first that training would draw.
    """
    from flowrl.scan.values import scanned_values

    more = [] if group is None else [f"train.group={group}"]
    more += [] if seed is None else [f"seed={seed}"]
    key, values_to_scan = scanned_values(recipe, values, more)
    _check_weights(values_to_scan[0].recipe, model_run, weights)
    silence_libraries()
    from flowrl.runs.folder import unused_folder
    from flowrl.scan import page
    from flowrl.scan.draw import refuse_equal
    from flowrl.scan.result import write

    refuse_equal(key, values_to_scan, iteration)
    folder = output or unused_folder(Path("runs") / f"scan-{Path(recipe).stem}-{key}")
    _make_folder(folder)
    console = output_console()
    scan = _scan(console, Path(recipe).stem, key, values_to_scan, prompts, iteration, tolerance, model_run, weights)
    write(scan, folder)
    path = page.write(scan, folder)
    console.print(_table(scan))
    console.print(_advice_text(scan), soft_wrap=True)
    typer.echo(f"{scan.seconds:.0f} s. Report: {path}")


def _check_weights(recipe: "Recipe", run: Path | None, weights: str) -> None:
    """Raises UserError if the weights of a run are missing or do not belong to the recipe's model."""
    from flowrl.recipe.changes import changes
    from flowrl.recipe.load import load_unchecked
    from flowrl.runs.weights import check_weights

    if run is None:
        if weights != "final":
            raise UserError(f"--weights {weights}: applies only with --model-run RUN; add it, or leave --weights out")
        return
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"--model-run: {run} is not a run's folder (it has no recipe.yaml); give one")
    check_weights(run, weights)
    of_run = load_unchecked(run / "recipe.yaml", ["track=null"])
    for name, (theirs, ours) in changes(of_run, recipe).items():
        if name in ("model", "full") or name.startswith("lora"):
            raise UserError(f"--model-run: {run} has {name}={theirs}, but the recipe {ours}; add {name}={theirs}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scan.json").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"--output: {folder} cannot be written ({error.strerror}); name another folder") from error


def _scan(
    console: Console,
    name: str,
    key: str,
    values: "Sequence[ScannedValue]",
    number: int,
    iteration: int,
    tolerance: float,
    run: Path | None,
    weights: str,
) -> "Scan":
    from flowrl.build import build_policy, read_inputs, set_up
    from flowrl.kinds import kind_of
    from flowrl.reading.inputs import prompt_cursor
    from flowrl.runs.weights import load_weights
    from flowrl.scan.advice import advise
    from flowrl.scan.draw import draw_values, measure, scan_settings
    from flowrl.scan.result import Scan

    recipe, kind = values[0].recipe, kind_of(values[0].recipe)
    set_up(recipe)
    inputs = read_inputs(recipe)
    if number > len(inputs.train):
        raise UserError(f"--prompts: got {number}, accepted: 2 to {len(inputs.train)} (the training prompts); lower it")
    prompts = prompt_cursor(recipe, inputs.train).take(number)
    start = time.perf_counter()
    with console.status("loading"):
        policy = build_policy(recipe)
        if run is not None:
            load_weights(policy, run, weights)
    settings = scan_settings(recipe, iteration, show=SHOWN_PROMPTS, members=TEXTS if kind.texts else MEMBERS)
    with _progress(console) as display:
        tasks = {c.label: display.add_task(f"{key}={escape(c.label)}", total=number * settings.group) for c in values}
        drawn = draw_values(
            policy,
            values,
            prompts,
            inputs.scorer,
            settings,
            rewards=inputs.scorer.specs,
            progress=lambda label, samples: display.update(tasks[label], completed=samples),
        )
    rows = [measure(choice.label, d) for choice, d in zip(values, drawn, strict=True)]
    return Scan(
        name=name,
        key=key,
        recipe=recipe,
        source="base model" if run is None else f"{run} ({weights})",
        iteration=iteration,
        prompts=[p.text for p in prompts],
        rows=rows,
        shots=[d.shots for d in drawn],
        advice=advise(rows, tolerance, kind.words.reference),
        tolerance=tolerance,
        seconds=time.perf_counter() - start,
    )


def _progress(console: Console) -> bars.Progress:
    columns: list[bars.ProgressColumn] = [bars.TextColumn("{task.description}"), bars.BarColumn(bar_width=24)]
    columns += [bars.MofNCompleteColumn(), bars.TextColumn("samples"), bars.TimeRemainingColumn(compact=True)]
    return bars.Progress(*columns, console=console, transient=True)


def _table(scan: "Scan") -> Table:
    title = (
        f"{scan.key} on {escape(scan.name)}: {len(scan.prompts)} training prompts x {scan.recipe.train.group} samples"
    )
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(scan.key.rpartition(".")[2], overflow="fold")
    names = ["spread", "silent", "reward", "minus ODE", "from ODE", "in group", "calls", "ms"]
    if scan.texts:
        names[3:6] = ["minus greedy", "not greedy", "other in group"]
    for name in names:
        table.add_column(name, justify="right", no_wrap=name == "spread" or name.startswith("minus"))
    for row in scan.rows:
        cells = [
            _format_mean(row.spread),
            f"{row.silent:.0%}",
            f"{row.reward.value:.3f}",
            _format_mean(row.quality, "+"),
        ]
        values = (row.distance and row.distance.value, row.diversity)
        cells += ["" if value is None else f"{value:.3f}" for value in values]
        cells += [f"{row.forwards:.4g}", f"{row.seconds * 1000:.3g}"]
        table.add_row(escape(row.label), *cells, style="bold green" if row.label == scan.advice.label else "")
    return table


def _format_mean(mean: "Mean", sign: str = "") -> str:
    return f"{mean.value:{sign}.3f}±{mean.error:.3f}"


def _advice_text(scan: "Scan") -> str:
    head = f"[bold]{scan.key}={escape(scan.advice.label)}[/]: " if scan.advice.label is not None else ""
    return head + escape(scan.advice.text)
