"""The templates of pages, which a process reads once: those of a report, a comparison and a scan."""

from functools import cache
from pathlib import Path

import jinja2

from flowrl.report import numerals

HERE = Path(__file__).parent


@cache
def template(folder: Path, name: str) -> jinja2.Template:
    """The template of that name in a folder, which may build on those of a report. What it is given is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, HERE]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"score": numerals.format_score, "signed": lambda v: numerals.format_signed(v, 2)}
    return environment.get_template(name)
