"""The commands' output: a rich console that does not truncate logs, and durations in words."""

import os
from typing import TextIO

from rich.console import Console

LOG_WIDTH = 160  # columns if the output is not a terminal but a log, a pipe or a file


def output_console(*, file: TextIO | None = None, soft_wrap: bool = False) -> Console:
    """A console on standard output; one that is not a terminal has 160 columns, or COLUMNS, instead of rich's 80."""
    console = Console(highlight=False, file=file, soft_wrap=soft_wrap)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = LOG_WIDTH
    return console


def duration_text(seconds: float) -> str:
    """Seconds in words: 43 s, 12 min, 3.4 h, 2.1 days."""
    for limit, size, unit in ((100, 1, "s"), (5400, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 10 or unit == "s" else f"{value:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"
