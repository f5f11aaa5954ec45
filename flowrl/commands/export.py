"""`flowrl export`: a run's weights for other tools, and the proof that they are the trained ones."""

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowrl.commands.common import RawOption, TrustOption, WeightsOption, quiet, target_of
from flowrl.names import UserError
from flowrl.terminal import output_console

if TYPE_CHECKING:
    from flowrl.contracts import Prompt
    from flowrl.exports.writer import Difference
    from flowrl.recipe.schema import Recipe


class Kind(str, Enum):
    """What an export can be."""

    lora = "lora"
    merged = "merged"


class Dtype(str, Enum):
    """What merged weights can be stored in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def export_command(
    target: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder.")],
    to: Annotated[Path | None, typer.Option(help="Folder to write; RUN/export/KIND where none is named.")] = None,
    kind: Annotated[Kind | None, typer.Option(help="A LoRA file, or a whole pipeline with the LoRA fused.")] = None,
    weights: WeightsOption = "final",
    raw: RawOption = False,
    trust: TrustOption = False,
    dtype: Annotated[Dtype | None, typer.Option(help="Of a merged pipeline; dtype.model where none is named.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Load the export afresh and compare its samples.")] = False,
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts that --verify draws.")] = 4,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Largest difference that --verify accepts; by dtype where not given.")
    ] = None,
) -> None:
    """Write a run's weights as a diffusers LoRA or a whole pipeline; --verify proves that they draw the same."""
    given = [] if dtype is None else [f"dtype.model={dtype.value}"]
    recipe, run = target_of(target, given, weights, raw, trust)
    if run is None:
        raise UserError(f"RUN: got {target!r}, a recipe; accepted: a run's folder, such as {recipe.output}")
    chosen = _kind(recipe, kind)
    if chosen == "lora" and dtype is not None:
        raise UserError(f"--dtype: got {dtype.value}, but a LoRA stays in float32; use --kind merged, or leave it out")
    folder = to or run / "export" / chosen
    quiet()
    from flowrl.build import set_up
    from flowrl.exports.writer import export_run

    set_up(recipe)
    asked = _prompts(recipe, prompts) if verify else []
    with output_console().status("exporting"):
        found = export_run(recipe, run, folder, chosen, weights, raw, prompts=asked, tolerance=tolerance)
    typer.echo(f"{folder}: {chosen}, {weights} weights; its README.md says how to load it")
    if found is not None:
        _report(folder, found, len(asked))


def _kind(recipe: "Recipe", kind: Kind | None) -> str:
    """The kind that is asked for, or the recipe's own."""
    if kind is Kind.lora and recipe.lora is None:
        raise UserError("--kind: got lora, but the run trained all weights (full: true); use --kind merged")
    return kind.value if kind else ("merged" if recipe.lora is None else "lora")


def _prompts(recipe: "Recipe", number: int) -> "list[Prompt]":
    """The first held-out prompts, or training prompts where none are held out."""
    from flowrl.reading.inputs import load_prompts

    source = recipe.prompts.heldout
    if source is None:
        return load_prompts(recipe, recipe.prompts.train, "train", number)
    return load_prompts(recipe, source, "heldout", number)


def _report(folder: Path, found: "Difference", number: int) -> None:
    """Prints what --verify found; exit code 1 where the export does not draw what the policy draws."""
    numbers = f"largest difference {found.largest:.2g} (mean {found.mean:.2g}), accepted {found.tolerance:g}"
    moved = f"training had moved these samples by up to {found.moved:.2g}"
    if not found.fine:
        typer.echo(f"flowrl: {folder} does not draw what the policy draws: {numbers}; {moved}", err=True)
        raise typer.Exit(1)
    typer.echo(f"verified on {number} prompts: {numbers}; {moved}")
    if found.moved <= found.tolerance:
        typer.echo("that is too little to tell trained from untrained weights: give --tolerance or --prompts")
