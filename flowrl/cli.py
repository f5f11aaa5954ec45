"""The command line: `flowrl run | check | eval | sample | scan | export ...`, each a file of flowrl/commands."""

import sys
from typing import Annotated

import typer

from flowrl import __version__
from flowrl.commands import world
from flowrl.commands.check import check_command
from flowrl.commands.compare import compare_command
from flowrl.commands.evaluate import evaluate_command
from flowrl.commands.export import export_command
from flowrl.commands.listing import list_command
from flowrl.commands.report import report
from flowrl.commands.sample import sample
from flowrl.commands.scan import scan_command
from flowrl.commands.serve import serve_command
from flowrl.commands.train import run
from flowrl.names import UserError

app = typer.Typer(
    help="Align image and video generators and language models with reinforcement learning, on a laptop or many GPUs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(run)
app.command("check")(check_command)
app.command("compare")(compare_command)
app.command("eval")(evaluate_command)
app.command()(sample)
app.command("scan")(scan_command)
app.command()(report)
app.command("export")(export_command)
app.command("serve-rewards")(serve_command)
app.command("list")(list_command)
app.add_typer(world.app, name="world")


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"flowrl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Reads the options that stand before a command."""


def main() -> None:
    """Entry point. What a user got wrong is one line on standard error and exit code 2, a reward that fails exit 1."""
    try:
        app()
    except UserError as error:
        typer.echo(f"flowrl: {error}", err=True)
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__name__ != "RewardError":  # importing the class would load torch
            raise
        typer.echo(f"flowrl: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
