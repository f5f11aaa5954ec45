"""`flowrl list`: what ships with flowrl."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from flowrl import names
from flowrl.recipe import presets
from flowrl.signatures import NO_DEFAULT, Entry
from flowrl.terminal import output_console
from flowrl.watch.alarms import ALARMS


class ListedKind(str, Enum):
    """What `flowrl list` can list."""

    models = "models"
    samplers = "samplers"
    windows = "windows"
    trees = "trees"
    schedules = "schedules"
    solvers = "solvers"
    rewards = "rewards"
    tools = "tools"
    environments = "environments"
    agents = "agents"
    advantages = "advantages"
    objectives = "objectives"
    lr_schedules = "lr-schedules"
    alarms = "alarms"
    presets = "presets"
    recipes = "recipes"


WITH_KEYS = {
    ListedKind.windows: "window",
    ListedKind.trees: "tree",
    ListedKind.schedules: "schedule",
    ListedKind.solvers: "solver",
    ListedKind.tools: "tool",
    ListedKind.environments: "environment",
    ListedKind.agents: "agent",
    ListedKind.advantages: "advantage",
    ListedKind.objectives: "objective",
    ListedKind.lr_schedules: "lr_schedule",
}


def list_command(
    what: Annotated[ListedKind | None, typer.Argument(help="One kind (default: all).")] = None,
) -> None:
    """List what ships: models, the parts of a recipe with their keys, presets and recipes."""
    tables = {
        ListedKind.models: [(name, str(path)) for name, path in names.MODELS.items()]
        + [
            ("owner/name", "any diffusers flow-matching pipeline, or causal language model, on the hub"),
            ("FOLDER", "the same, on disk"),
        ],
        ListedKind.samplers: [(name, entry.summary) for name, entry in names.steps().items()],
        ListedKind.rewards: [(name, entry.summary) for name, entry in names.rewards().items()],
        ListedKind.alarms: [(name, kind.cause) for name, kind in ALARMS.items()],
        ListedKind.presets: list(presets.texts().items()),
        ListedKind.recipes: [(name, _headline(path)) for name, path in names.recipes().items()],
    }
    tables |= {kind: [_row(part, e) for e in names.shipped(part).values()] for kind, part in WITH_KEYS.items()}
    for kind in [what] if what else list(ListedKind):
        table = Table(title=kind.value, title_justify="left", show_header=False, box=None)
        for row in tables[kind]:
            table.add_row(*map(escape, row))
        output_console().print(table)


def _row(kind: str, entry: Entry) -> tuple[str, str]:
    """A part's name; what it is, and its keys, those in brackets with a default."""
    from flowrl.recipe.sections import keys

    written = [p.name if p.default is NO_DEFAULT else f"[{p.name}]" for p in keys(kind, entry)]
    return entry.name, f"{entry.summary.rstrip('.')}{': ' if written else ''}{', '.join(written)}"


def _headline(recipe: Path) -> str:
    """The first line of a recipe's header comment."""
    return recipe.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").strip()
