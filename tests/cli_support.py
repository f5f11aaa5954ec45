"""The command line as a user meets it, called in this process."""

import pytest
from rich.console import Console as RichConsole

from flowrl import cli
from flowrl.runs.console import Console


def call(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *arguments: object, columns: int = 160
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `flowrl` with these arguments."""
    monkeypatch.setattr("sys.argv", ["flowrl", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", str(columns))
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def quiet() -> Console:
    """A console that prints nowhere."""
    return Console(RichConsole(quiet=True))
