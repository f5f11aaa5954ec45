"""`flowrl run`: trains as a recipe says, or prints the plan of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from flowrl.commands.common import Overrides, RecipeArgument, quiet
from flowrl.names import UserError

if TYPE_CHECKING:
    from flowrl.recipe.schema import Recipe


def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop; no weights are loaded.")] = False,
    seconds_per_forward: Annotated[
        float | None, typer.Option(help="With --dry-run: time of one row through the denoiser, to estimate the run's.")
    ] = None,
    time_from: Annotated[
        Path | None, typer.Option(metavar="RUN", help="With --dry-run: an earlier run to take the times from.")
    ] = None,
) -> None:
    """Train as a recipe says."""
    from flowrl.recipe.load import load

    if not dry_run and (seconds_per_forward is not None or time_from is not None):
        raise UserError("--seconds-per-forward and --time-from: are read with --dry-run; add it, or leave them out")
    checked = load(recipe, overrides or [])
    if dry_run:
        _plan(checked, seconds_per_forward, time_from)
        return
    quiet()
    from flowrl.run import run as run_recipe

    run_recipe(checked)


def _plan(recipe: "Recipe", forward: float | None, earlier: Path | None) -> None:
    """Prints what the recipe will do, what it takes, and how long where a pace is given."""
    from flowrl.estimate import assumed, measured, time_text

    if forward is not None and (forward <= 0 or earlier is not None):
        given = f"got {forward:g}" + (" and --time-from" if earlier is not None else "")
        raise UserError(f"--seconds-per-forward: {given}, accepted: a number > 0, or --time-from instead; give one")
    pace = measured(earlier) if earlier is not None else None if forward is None else assumed(recipe, forward)
    quiet()
    from flowrl.build import read_prompts
    from flowrl.planning import describe
    from flowrl.sizes.text import describe_sizes

    train, heldout = read_prompts(recipe)
    blocks = [describe(recipe, num_train=len(train), num_heldout=len(heldout)), describe_sizes(recipe, train)]
    blocks += [] if pace is None else [time_text(recipe, pace, len(heldout))]
    Console(highlight=False, soft_wrap=True).print(escape("\n\n".join(blocks)))
