"""Where the commands print: a rich console that cuts nothing short in a log, and seconds as a person says them."""

import os
from typing import Any

from rich.console import Console

LOG_WIDTH = 160  # columns of what is no terminal: a log, a pipe, a file


def output_console(**options: Any) -> Console:
    """A console on standard output. Rich takes 80 columns where it cannot ask; a log gets 160, or COLUMNS."""
    console = Console(highlight=False, **options)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = LOG_WIDTH
    return console


def duration_text(seconds: float) -> str:
    """Seconds as a person says them: 43 s, 12 min, 3.4 h, 2.1 days."""
    for limit, size, unit in ((100, 1, "s"), (5400, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 10 or unit == "s" else f"{value:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"
