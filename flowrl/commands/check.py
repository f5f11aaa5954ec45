"""`flowrl check`: proves on the real model what a run takes for granted."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowrl.commands.common import Overrides, RecipeArgument, quiet
from flowrl.terminal import duration_text, output_console

if TYPE_CHECKING:
    from flowrl.checking.proofs.proof import Finding

TITLE_WIDTH = 38


def check_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=2, help="About how many samples the proofs draw.")] = 32,
) -> None:
    """Load the real model and prove what a run takes for granted, a line each; exit code 1 where something fails."""
    from flowrl.recipe.load import load

    checked = load(recipe, overrides or [])
    console = output_console()
    with console.status("loading"):
        quiet()
        from flowrl.checking.check import check
        from flowrl.checking.proofs.proof import Finding

    first: Finding | None = None
    with console.status("") as status:
        for found in check(checked, rows=rows, begin=lambda title: status.update(title)):
            if isinstance(found, Finding):
                first = first or (found if found.held is False else None)
                _print(console, found)
                continue
            parts = {"rollout": found.rollout, "scoring": found.scoring, "training": found.training}
            parts["evaluation"] = found.evaluation
            listed = ", ".join(f"{name} {duration_text(seconds)}" for name, seconds in parts.items())
            _row(console, "", "the whole recipe, on this machine", f"about {duration_text(found.total)}: {listed}")
    if first is not None:
        typer.echo(f"flowrl: check: {first.sentence()}", err=True)
        raise typer.Exit(1)


def _print(console: Console, found: "Finding") -> None:
    mark, style = {True: ("✓", "green"), False: ("✗", "bold red"), None: ("–", "dim")}[found.held]
    lines = [escape(found.measured)]
    lines += [
        f"[bold]{word}:[/] {escape(text)}"
        for word, text in (("likely cause", found.cause), ("try", found.remedy))
        if text
    ]
    _row(console, f"[{style}]{mark}[/]", found.title, "\n".join(lines), "dim" if found.held is None else "")


def _row(console: Console, mark: str, title: str, text: str, style: str = "") -> None:
    """A line of the list; what is too long for it goes on below its own column."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=1)
    grid.add_column(width=TITLE_WIDTH)
    grid.add_column(overflow="fold")
    grid.add_row(mark, title, text, style=style)
    console.print(grid)
