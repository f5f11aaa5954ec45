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

What is published, what it is here, and what shows that it is the same. The page is made by `python -m
flowrl.recipe.papers docs/papers.md` from [papers.yaml](../flowrl/recipe/papers.yaml) and the recipes that ship.
*Checked against* names kinds of published numbers that tests compare with ([CONTRIBUTING.md](../CONTRIBUTING.md)); a
dash there says that the method was built from its paper or code, and that tests compute it in another way. Recipes with
a * learn here; what they reached stands [below](#what-they-reached-here). [training.md](training.md#objectives) says
what each preset sets.
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
        found[name] = (yaml.load(text, yaml.BaseLoader), "\n".join(line.strip("# ") for line in lines[:head]))
    return found


def _value(values: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key, None where it is not there."""
    value: Any = values
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def recipes_of(paper: Paper) -> list[str]:
    """The recipes that have one of its presets, its keys, and one of its papers in their header."""
    found = []
    for name, (values, header) in _recipes().items():
        preset = _value(values, "objective.preset") in paper.presets if paper.presets else bool(paper.keys)
        keys = all(_value(values, key) not in (None, "null") for key in paper.keys)
        keys &= all(wanted in ("any", _value(values, key)) for key, wanted in paper.keys.items())
        if preset and keys and (not paper.papers or any(number in header for number in paper.papers)):
            found.append(name)
    return found


def results() -> dict[str, str]:
    """Recipe -> what its header says that it reached."""
    pattern = re.compile(r"^Result +(.*?)\n(?=[A-Z][a-z]+ )", re.DOTALL | re.MULTILINE)
    told = {name: pattern.search(head) for name, (_, head) in _recipes().items()}
    return {name: " ".join(found[1].split()) for name, found in told.items() if found}


def _row(paper: Paper) -> str:
    links = ", ".join(f"[{number}](https://arxiv.org/abs/{number})" for number in paper.papers)
    chosen = ", ".join([*(f"`preset: {name}`" for name in paper.presets), *([paper.how] if paper.how else [])])
    reached = results()
    recipes = ", ".join(f"`{name}`" + ("*" if name in reached else "") for name in recipes_of(paper))
    checked = ", ".join(f"`{kind}`" for kind in paper.golden)
    measured = re.sub(r"(\w+)\.md(#[\w-]+)?", lambda m: f"[{m[1]}]({m[0]})", paper.measured)
    cells = [paper.method, links, chosen, recipes, checked, measured]
    return "| " + " | ".join(cell or "-" for cell in cells) + " |"


def page() -> str:
    """The text of docs/papers.md."""
    lines = [HEAD]
    for family, rows in families().items():
        lines += [f"## {family}\n", "| method | paper | what it is here | recipes | checked against | measured |"]
        lines += ["|---|---|---|---|---|---|", *map(_row, rows), ""]
    lines += ["## What they reached here\n", "From the headers of the recipes:\n"]
    lines += [f"- `{name}`: {text}" for name, text in results().items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
