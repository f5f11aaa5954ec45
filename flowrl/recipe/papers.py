"""Which paper is which preset, which recipes follow it, and what tests and runs show of it: the page docs/papers.md.

python -m flowrl.recipe.papers docs/papers.md
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from flowrl import names

HEAD = """# Papers

This page lists every published method that flowrl has, the preset or keys that select it, and the evidence that it is
the published one. `python -m flowrl.recipe.papers docs/papers.md` generates it from
[papers.yaml](../flowrl/recipe/papers.yaml) and the recipes that ship.

*Checked against* names kinds of published numbers that tests compare with ([CONTRIBUTING.md](../CONTRIBUTING.md)). A
dash there means that the method was built from its paper or code, and that tests compare it with an independent
computation. Recipes with a * learn on a laptop; their results are [below](#what-they-reached-here).
[training.md](training.md#objectives) says what each preset sets.
"""


@dataclass(frozen=True)
class Paper:
    """A method as papers.yaml has it; the head of that file says what each field is."""

    method: str
    papers: list[str]
    presets: list[str] = field(default_factory=list)
    how: str = ""
    keys: dict[str, str] = field(default_factory=dict)
    golden: list[str] = field(default_factory=list)
    measured: str = ""
    missing: str = ""


def families() -> dict[str, list[Paper]]:
    """The rows of papers.yaml by family. Raises TypeError for a field that no row has."""
    read = yaml.load(Path(__file__).with_name("papers.yaml").read_text(encoding="utf-8"), yaml.BaseLoader)
    return {part["family"]: [Paper(**row) for row in part["rows"]] for part in read}


@cache
def _recipes() -> dict[str, tuple[dict[str, Any], str]]:
    """Name -> values and header of every recipe that ships."""
    found = {}
    for name, path in names.recipes().items():
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        head = next(number for number, line in enumerate(lines) if not line.startswith("#"))
        found[name] = (
            yaml.load(text, yaml.BaseLoader),
            "\n".join(line.removeprefix("#").removeprefix(" ").rstrip() for line in lines[:head]),
        )
    return found


def _value(values: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key, None where it is not there."""
    value: Any = values
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def recipes_of(paper: Paper) -> list[str]:
    """The recipes that have one of its presets, its keys, and one of its papers in their header.

    A preset counts that a phase has.
    """
    found = []
    for name, (values, header) in _recipes().items():
        phases = [phase.get("overrides", {}).get("objective.preset") for phase in values.get("phases", [])]
        chosen = {_value(values, "objective.preset"), *phases}
        preset = bool(chosen & set(paper.presets)) if paper.presets else bool(paper.keys)
        keys = all(_value(values, key) not in (None, "null") for key in paper.keys)
        keys &= all(wanted in ("any", _value(values, key)) for key, wanted in paper.keys.items())
        if preset and keys and (not paper.papers or any(number in header for number in paper.papers)):
            found.append(name)
    return found


def results() -> dict[str, str]:
    """Recipe -> what its header says that it reached."""
    pattern = re.compile(r"^Result +(.*?)\n(?=[A-Z][a-z]+ )", re.DOTALL | re.MULTILINE)
    told = {name: pattern.search(head) for name, (_, head) in _recipes().items()}
    return {name: _without_tables(found[1]) for name, found in told.items() if found}


def _without_tables(text: str) -> str:
    """A result of a header as one line: whole sentences up to its first table, whose lines are indented further."""
    lines = text.split("\n")
    depths = [len(line) - len(line.lstrip()) for line in lines]
    end = next((i for i, depth in enumerate(depths) if i and depth > depths[1]), len(lines))
    words = " ".join(" ".join(lines[:end]).split())
    if end == len(lines):
        return words
    return f"{words if words.endswith('.') else words.rpartition('. ')[0] + '.'} The header of the recipe has more"


def _row(paper: Paper) -> str:
    links = ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in paper.papers)
    chosen = ", ".join([*(f"`preset: {name}`" for name in paper.presets), *([paper.how] if paper.how else [])])
    reached = results()
    recipes = ", ".join(f"`{name}`" + ("*" if name in reached else "") for name in recipes_of(paper))
    checked = ", ".join(f"`{kind}`" for kind in paper.golden)
    measured = re.sub(r"(\w+)\.md(#[\w-]+)?", lambda m: f"[{m[1]}]({m[0]})", paper.measured)
    cells = [paper.method, links, chosen, recipes, checked, measured]
    return "| " + " | ".join(cell or "-" for cell in cells) + " |"


def _numbers(row: Paper) -> str:
    return f" ({', '.join(row.papers)})" if row.papers else ""


def _gaps() -> list[str]:
    """Lines on methods without a recipe, by preset or by keys, and on those that are not here, with the reason."""
    rows = [row for listed in families().values() for row in listed]
    without = [row for row in rows if not row.missing and not recipes_of(row)]
    preset = "; ".join(row.method for row in without if row.presets)
    keys = "; ".join(row.method for row in without if not row.presets)
    lines = ["Tests train with every preset, on the models that ship or on tiny ones.\n"]
    lines += [
        f"Methods with a preset, but without a recipe: {preset}.\n",
        f"Methods by keys, without a recipe: {keys}.\n",
    ]
    told = [f"- {row.method}{_numbers(row)}: {row.missing}." for row in rows if row.missing]
    return [*lines, "Methods that flowrl does not have:\n", *told, ""]


def page() -> str:
    """The text of docs/papers.md."""
    lines = [HEAD]
    for family, listed in families().items():
        rows = [row for row in listed if not row.missing]
        if not rows:
            continue
        lines += [f"## {family}\n", "| method | paper | preset, keys | recipes | checked against | measured |"]
        lines += ["|---|---|---|---|---|---|", *map(_row, rows), ""]
    lines += ["## Without a recipe, and not here\n", *_gaps()]
    lines += ["## What they reached here\n", "Results from the headers of the recipes:\n"]
    lines += [f"- `{name}`: {text}" for name, text in results().items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
