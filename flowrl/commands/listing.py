"""`flowrl list`: what ships."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flowrl import names
from flowrl.recipe import presets, windows
from flowrl.terminal import output_console


class Kind(str, Enum):
    """What `flowrl list` can list."""

    models = "models"
    samplers = "samplers"
    windows = "windows"
    rewards = "rewards"
    presets = "presets"
    recipes = "recipes"


def list_command(
    what: Annotated[Kind | None, typer.Argument(help="Which of them; all where none is named.")] = None,
) -> None:
    """List models, samplers, windows, rewards, presets and recipes that ship."""
    tables = {
        Kind.models: [(name, str(path)) for name, path in names.MODELS.items()]
        + [
            ("owner/name", "any diffusers flow-matching pipeline, or causal language model, on the hub"),
            ("FOLDER", "the same, on disk"),
        ],
        Kind.samplers: [(name, entry.summary) for name, entry in names.steps().items()],
        Kind.windows: list(windows.texts().items()),
        Kind.rewards: [(name, entry.summary) for name, entry in names.rewards().items()],
        Kind.presets: list(presets.texts().items()),
        Kind.recipes: [(name, _headline(path)) for name, path in names.recipes().items()],
    }
    for kind in [what] if what else list(Kind):
        table = Table(title=kind.value, title_justify="left", show_header=False, box=None)
        for row in tables[kind]:
            table.add_row(*map(escape, row))
        output_console().print(table)


def _headline(recipe: Path) -> str:
    """The first line of a recipe's header comment."""
    return recipe.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").strip()
