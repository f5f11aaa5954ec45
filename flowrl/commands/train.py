"""`flowrl run`: trains as a recipe says, or prints the plan of it."""

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from flowrl.commands.common import Overrides, RecipeArgument, quiet


def run(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop; no weights are loaded.")] = False,
) -> None:
    """Train as a recipe says."""
    from flowrl.recipe.load import load

    checked = load(recipe, overrides or [])
    if dry_run:
        from flowrl.build import read_prompts
        from flowrl.planning import describe

        train, heldout = read_prompts(checked)
        text = describe(checked, num_train=len(train), num_heldout=len(heldout))
        Console(highlight=False, soft_wrap=True).print(escape(text))
        return
    quiet()
    from flowrl.run import run as run_recipe

    run_recipe(checked)
