"""`flowrl run`: trains as a recipe says, goes on with an earlier run, or prints the plan."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from flowrl.commands.common import Overrides, RecipeArgument, quiet
from flowrl.names import UserError


def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop; no weights are loaded.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest run of this recipe's output folder.")
    ] = False,
) -> None:
    """Train as a recipe says. `resume=FOLDER` goes on with that run."""
    from flowrl.recipe.load import load

    named = [o.removeprefix("resume=") for o in overrides or [] if o.startswith("resume=")]
    checked = load(recipe, [o for o in overrides or [] if not o.startswith("resume=")])
    if dry_run:
        from flowrl.build import read_prompts
        from flowrl.planning import describe

        train, heldout = read_prompts(checked)
        text = describe(checked, num_train=len(train), num_heldout=len(heldout))
        Console(highlight=False, soft_wrap=True).print(escape(text))
        return
    quiet()
    from flowrl.loop import Alarmed
    from flowrl.run import run as run_recipe
    from flowrl.rundir import newest
    from flowrl.stopping import Stopped

    folder = Path(named[-1]) if named else newest(Path(checked.output or "")) if resume else None
    if folder is None and resume:
        typer.echo(f"--resume: no run under {checked.output} yet; beginning one")
    if folder is not None and not folder.is_dir():
        raise UserError(f"resume: {folder} is not there; give the folder of a run")
    try:
        run_recipe(checked, resume=folder)
    except Stopped as stop:
        typer.echo(f"stopped by {stop.name}; go on with: flowrl run {recipe} ... --resume", err=True)
        raise typer.Exit(stop.code) from None
    except Alarmed as alarm:
        typer.echo(f"flowrl: {alarm}", err=True)
        raise typer.Exit(1) from None
