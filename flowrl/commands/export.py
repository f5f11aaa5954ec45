"""`flowrl export`: a run's weights for other tools, and a check that they are the trained ones."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowrl.commands.common import RawOption, TrustOption, WeightsOption, resolve_target, silence_libraries
from flowrl.names import UserError
from flowrl.terminal import output_console

if TYPE_CHECKING:
    from flowrl.contracts import Prompt
    from flowrl.exports.writer import ExportDifference
    from flowrl.recipe.schema import Recipe


class ExportKind(str, Enum):
    """The kinds of an export."""

    lora = "lora"
    merged = "merged"


class ExportDtype(str, Enum):
    """The dtypes of merged weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def export_command(
    target: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder.")],
    to: Annotated[Path | None, typer.Option(help="Folder to write (default: RUN/export/KIND).")] = None,
    kind: Annotated[
        ExportKind | None, typer.Option(help="A LoRA file, or a whole pipeline with the LoRA merged.")
    ] = None,
    weights: WeightsOption = "final",
    raw: RawOption = False,
    trust: TrustOption = False,
    dtype: Annotated[
        ExportDtype | None, typer.Option(help="Precision of a merged pipeline (default: dtype.model).")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Load the export and compare its samples.")] = False,
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts for --verify.")] = 4,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Largest difference that --verify accepts (default: by dtype).")
    ] = None,
) -> None:
    """Write a run's weights as a diffusers LoRA or a whole pipeline; --verify checks that the samples are the same."""
    given = [] if dtype is None else [f"dtype.model={dtype.value}"]
    recipe, run = resolve_target(target, given, weights, raw, trust)
    if run is None:
        raise UserError(f"RUN: got {target!r}, a recipe; accepted: a run's folder, such as {recipe.output}")
    chosen = _choose_kind(recipe, kind)
    if chosen == "lora" and dtype is not None:
        raise UserError(f"--dtype: got {dtype.value}, but a LoRA stays in float32; use --kind merged, or leave it out")
    folder = to or run / "export" / chosen
    silence_libraries()
    from flowrl.build import set_up
    from flowrl.exports.writer import export_run

    set_up(recipe)
    verified = _verification_prompts(recipe, prompts) if verify else []
    with output_console().status("exporting"):
        difference = export_run(recipe, run, folder, chosen, weights, raw, prompts=verified, tolerance=tolerance)
    typer.echo(f"{folder}: {chosen}, {weights} weights; its README.md says how to load it")
    if difference is not None:
        _print_difference(folder, difference, len(verified))


def _choose_kind(recipe: "Recipe", kind: ExportKind | None) -> str:
    """The requested kind, or the recipe's own."""
    if kind is ExportKind.lora and recipe.lora is None:
        raise UserError("--kind: got lora, but the run trained all weights (full: true); use --kind merged")
    return kind.value if kind else ("merged" if recipe.lora is None else "lora")


def _verification_prompts(recipe: "Recipe", number: int) -> "list[Prompt]":
    """The first held-out prompts, or training prompts if none are held out."""
    from flowrl.reading.inputs import load_prompts

    source = recipe.prompts.heldout
    if source is None:
        return load_prompts(recipe, recipe.prompts.train, "train", number)
    return load_prompts(recipe, source, "heldout", number)


def _print_difference(folder: Path, difference: "ExportDifference", number: int) -> None:
    """Prints the result of --verify; exit code 1 if the export does not draw what the policy draws."""
    numbers = (
        f"largest difference {difference.largest:.2g} (mean {difference.mean:.2g}), accepted {difference.tolerance:g}"
    )
    moved = f"training had moved these samples by up to {difference.moved:.2g}"
    if not difference.accepted:
        typer.echo(f"flowrl: {folder} does not draw what the policy draws: {numbers}; {moved}", err=True)
        raise typer.Exit(1)
    typer.echo(f"verified on {number} prompts: {numbers}; {moved}")
    if difference.moved <= difference.tolerance:
        typer.echo("that is too little to tell trained weights from untrained ones: give --tolerance or --prompts")
