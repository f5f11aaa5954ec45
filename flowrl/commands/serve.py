"""`flowrl serve-rewards`: rewards for runs on other machines or in other processes."""

from typing import Annotated

import typer

from flowrl.names import UserError


def serve_command(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A file with `rewards` and `serve`, or a recipe.")],
    host: Annotated[str | None, typer.Option(help="Overrides serve.host.")] = None,
    port: Annotated[int | None, typer.Option(help="Overrides serve.port; 0 chooses a free port.")] = None,
    workers: Annotated[int | None, typer.Option(help="Overrides serve.workers.")] = None,
) -> None:
    """Score samples for other machines over HTTP; the reward `remote` is the client. Ends on Ctrl-C or SIGTERM."""
    from flowrl.serve.config import load

    checked = load(config, host=host, port=port, workers=workers)
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"serve-rewards: {error.name} is missing; pip install 'flowrl-toolkit[serve]'") from None
    from flowrl.serve.run import run

    run(checked, typer.echo, lambda text: typer.echo(f"flowrl: {text}", err=True))
