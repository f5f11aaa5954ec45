"""A comparison as Markdown with PNG figures beside it, in blocks that can be made again around a person's own text.

Each block stands between two comments. In a file that is there already only what is between them is replaced: what
was written by hand stays, and a block that was taken out stays out.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from flowrl.compare import plots, tables
from flowrl.compare.overview import AXES, Overview, headline, sentences
from flowrl.compare.samples import Sheet
from flowrl.compare.verdict import RULE
from flowrl.names import UserError

BEGIN, END = "<!-- flowrl compare: {} -->", "<!-- flowrl compare: end -->"
HEADS = {
    "setting": None,
    "verdict": "Who is ahead",
    "rewards": "Held-out rewards",
    "cost": "What an iteration costs",
    "drift": "Drift from the base model, and diversity",
    "samples": "Samples at equal prompt and noise",
    "runs": "Runs",
}


def write(of: Overview, sheet: Sheet | None, path: Path, command: str) -> None:
    """Writes the file and its figures, or renews the blocks of one that is there. Raises UserError for a file that has
    none, or where figures cannot be drawn."""
    if not plots.available():
        raise UserError("--markdown: its figures need matplotlib; pip install 'flowrl-toolkit[compare]', or matplotlib")
    old = path.read_text(encoding="utf-8") if path.is_file() else None
    if old is not None and not any(BEGIN.format(name) in old for name in HEADS):
        raise UserError(f"--markdown: {path} was not made by flowrl compare; name another file, or remove this one")
    path.parent.mkdir(parents=True, exist_ok=True)
    found = _blocks(of, sheet, path, command)
    text = _whole(of.title, found) if old is None else renewed(old, found)
    path.write_text(text, encoding="utf-8")


def renewed(old: str, blocks: Mapping[str, str]) -> str:
    """The text with these blocks in place of its own; what stands outside of them is as it was."""
    for name, block in blocks.items():
        pattern = re.compile(re.escape(BEGIN.format(name)) + r".*?" + re.escape(END), re.DOTALL)
        old = pattern.sub(lambda _, name=name, block=block: _marked(name, block), old)
    return old


def _marked(name: str, block: str) -> str:
    return f"{BEGIN.format(name)}\n{block.strip()}\n{END}"


def _whole(title: str, blocks: Mapping[str, str]) -> str:
    parts = [f"# {title}"]
    for name, block in blocks.items():
        head = HEADS[name]
        parts += [] if head is None else [f"## {head}"]
        parts.append(_marked(name, block))
    return "\n\n".join(parts) + "\n"


def _blocks(of: Overview, sheet: Sheet | None, path: Path, command: str) -> dict[str, str]:
    found = {"setting": _setting(of, command), "verdict": _verdict(of), "rewards": _rewards(of, path)}
    found["cost"] = tables.markdown(tables.costs(of))
    drift = tables.drift(of)
    found["drift"] = "Not measured." if drift is None else tables.markdown(drift)
    if sheet is not None and sheet.pictures:
        name = f"{path.stem}-samples.png"
        plots.write_samples(sheet, path.with_name(name))
        found["samples"] = f"![Held-out samples of seed {sheet.seed}, a row a prompt, a column a variant]({name})"
    heads, rows = tables.runs(of)
    found["runs"] = tables.markdown((heads[:-1], [row[:-1] for row in rows]))  # folders are this machine's own
    return found


def _setting(of: Overview, command: str) -> str:
    lines = ["Made by", "", "```bash", command, "```"]
    lines += ["", *(f"- {note}" for note in of.notes)] if of.notes else []
    return "\n".join(lines)


def _verdict(of: Overview) -> str:
    parts = []
    for reward in of.rewards:
        for axis in AXES:
            if of.comparison(axis, reward) is None:
                continue
            parts.append(f"**{headline(of, axis, reward)}**")
            parts.append("\n".join(f"- {sentence}" for sentence in sentences(of, axis, reward)))
    parts.append(RULE)
    return "\n\n".join(filter(None, parts))


def _rewards(of: Overview, path: Path) -> str:
    figure = path.with_name(f"{path.stem}-curves.png")
    plots.write_curves(of, figure)
    image = f"![Held-out rewards over time and over {of.unit}-forwards, and seconds an iteration]({figure.name})"
    return f"{tables.markdown(tables.held(of))}\n\n{image}"
