"""`flowrl explain`: what a key of a recipe or a part is; `flowrl schema`: all of them, for an editor."""

import json
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flowrl.terminal import output_console


def _complete(incomplete: str) -> list[str]:
    from flowrl.recipe.explain import fields, parts
    from flowrl.recipe.presets import PRESETS

    known = [at for at, _, _ in fields()]
    known += [f"{kind}.{name}" for kind, entries in parts().items() for name in entries]
    return [name for name in [*known, *(f"preset.{name}" for name in PRESETS)] if name.startswith(incomplete)]


def explain_command(
    key: Annotated[
        str,
        typer.Argument(
            metavar="KEY",
            autocompletion=_complete,
            help="A recipe's key (train.lr), a part (step.flow_sde, window.frozen), or a preset (preset.guard).",
        ),
    ],
) -> None:
    """Explain a recipe key, a part or a preset: values, default, meaning, source, and the presets that set it."""
    from flowrl.recipe.explain import explain

    table = Table(title=key, title_justify="left", show_header=False, box=None)
    for what, text in explain(key):
        table.add_row(escape(what), escape(text))
    output_console().print(table)


def schema_command() -> None:
    """Print a JSON schema of recipes, for editors that check and complete YAML."""
    from flowrl.recipe.explain import json_schema

    typer.echo(json.dumps(json_schema(), indent=1))
