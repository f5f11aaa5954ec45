"""The command line: `flowrl run | check | eval | sample | scan | export ...`, each a file of flowrl/commands."""

import sys
from typing import Annotated

import typer

from flowrl import __version__
from flowrl.commands import world
from flowrl.commands.check import check_command
from flowrl.commands.compare import compare_command
from flowrl.commands.evaluate import evaluate_command
from flowrl.commands.explain import explain_command, schema_command
from flowrl.commands.export import export_command
from flowrl.commands.failures import TRACEBACK_VARIABLE, refuse_non_utf8, refuse_several_processes, report_exception
from flowrl.commands.listing import list_command
from flowrl.commands.pairs import pairs_command
from flowrl.commands.report import report
from flowrl.commands.sample import sample
from flowrl.commands.scan import scan_command
from flowrl.commands.serve import serve_command
from flowrl.commands.serve_policy import serve_policy_command
from flowrl.commands.train import run
from flowrl.commands.train_latent_reward import train_latent_reward_command
from flowrl.commands.train_reward import train_reward_command

# commands that a second process would repeat as a whole
ONE_PROCESS = (
    "check",
    "compare",
    "eval",
    "sample",
    "pairs",
    "train-reward",
    "train-latent-reward",
    "scan",
    "export",
    "serve-policy",
    "world",
)
app = typer.Typer(
    help="Align image, video and sound generators and language models by reinforcement learning, on a CPU or a GPU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command()(run)
app.command("check")(check_command)
app.command("compare")(compare_command)
app.command("eval")(evaluate_command)
app.command()(sample)
app.command("pairs")(pairs_command)
app.command("train-reward")(train_reward_command)
app.command("train-latent-reward")(train_latent_reward_command)
app.command("scan")(scan_command)
app.command()(report)
app.command("export")(export_command)
app.command("serve-rewards")(serve_command)
app.command("serve-policy")(serve_policy_command)
app.command("list")(list_command)
app.command("explain")(explain_command)
app.command("schema")(schema_command)
app.add_typer(world.app, name="world")


def _version(shown: bool) -> None:
    if shown:
        typer.echo(f"flowrl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    traceback: Annotated[  # `main` takes it out of the arguments, wherever it is
        bool, typer.Option("--traceback", help=f"Show an error's whole traceback, as {TRACEBACK_VARIABLE}=1 does.")
    ] = False,
) -> None:
    """Reads the options before a command."""
    if context.invoked_subcommand in ONE_PROCESS:
        refuse_several_processes(context.invoked_subcommand)


def main() -> None:
    """Entry point. Any exception is one line on standard error and an exit code: see flowrl/commands/failures.py."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--traceback"]
    try:
        refuse_non_utf8(arguments)
        app(args=arguments)
    except Exception as error:
        sys.exit(report_exception(error, arguments, whole=len(arguments) < len(sys.argv) - 1))


if __name__ == "__main__":
    main()
