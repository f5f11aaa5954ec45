"""`flowrl check`: proves on the real model what a run assumes."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowrl.commands.common import Overrides, RecipeArgument, silence_libraries
from flowrl.terminal import duration_text, output_console

if TYPE_CHECKING:
    from flowrl.checking.proofs.proof import ProofResult

TITLE_WIDTH = 38


def check_command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=2, help="Approximate number of samples for the checks.")] = 32,
) -> None:
    """Test on the real model what a run relies on, one line per check; exit code 1 if a check fails."""
    from flowrl.recipe.load import load

    checked = load(recipe, overrides or [])
    console = output_console()
    with console.status("loading"):
        silence_libraries()
        from flowrl.checking.check import check
        from flowrl.checking.proofs.proof import ProofResult

    first: ProofResult | None = None
    with console.status("") as status:
        for result in check(checked, rows=rows, begin=lambda title: status.update(title)):
            if isinstance(result, ProofResult):
                first = first or (result if result.held is False else None)
                _print_result(console, result)
                continue
            parts = {"rollout": result.rollout, "scoring": result.scoring, "training": result.training}
            parts["evaluation"] = result.evaluation
            listed = ", ".join(f"{name} {duration_text(seconds)}" for name, seconds in parts.items())
            _print_row(
                console, "", "the whole recipe, on this machine", f"about {duration_text(result.total)}: {listed}"
            )
    if first is not None:
        typer.echo(f"flowrl: check: {first.sentence()}", err=True)
        raise typer.Exit(1)


def _print_result(console: Console, result: "ProofResult") -> None:
    mark, style = {True: ("✓", "green"), False: ("✗", "bold red"), None: ("–", "dim")}[result.held]
    lines = [escape(result.measured)]
    lines += [
        f"[bold]{word}:[/] {escape(text)}"
        for word, text in (("likely cause", result.cause), ("try", result.remedy))
        if text
    ]
    _print_row(console, f"[{style}]{mark}[/]", result.title, "\n".join(lines), "dim" if result.held is None else "")


def _print_row(console: Console, mark: str, title: str, text: str, style: str = "") -> None:
    """A row of the list; long text wraps within its own column."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=1)
    grid.add_column(width=TITLE_WIDTH)
    grid.add_column(overflow="fold")
    grid.add_row(mark, title, text, style=style)
    console.print(grid)
