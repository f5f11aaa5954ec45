"""`flowrl report`: a run's folder as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from flowrl.names import UserError


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder; the run may still be in progress.")],
    output: Annotated[Path | None, typer.Option(help="The file to write (default: RUN/report.html).")] = None,
) -> None:
    """Write a run's report: one HTML file that needs no server and no network."""
    from flowrl.report.page import write

    try:
        path = write(run, output)
    except OSError as error:
        place = output or run / "report.html"
        raise UserError(f"{place}: cannot be written ({error.strerror}); name another file with --output") from error
    typer.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
