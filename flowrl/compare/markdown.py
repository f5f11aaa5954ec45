"""A comparison as Markdown with PNG figures beside it, in blocks that can be regenerated around hand-written text.

Each block is enclosed in two comments. In an existing file only the text between them is replaced: hand-written text
stays, and a block that was removed stays removed.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from flowrl.compare import plots, tables
from flowrl.compare.overview import AXES, Overview, headline, pair_sentences
from flowrl.compare.samples import SampleSheet
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


def write(overview: Overview, sheet: SampleSheet | None, path: Path, command: str) -> None:
    """Writes the file and its figures, or replaces the blocks of an existing one. Raises UserError for a file without
    such blocks, or if figures cannot be drawn."""
    if not plots.available():
        raise UserError("--markdown: its figures need matplotlib; pip install 'flowrl-toolkit[compare]', or matplotlib")
    old = path.read_text(encoding="utf-8") if path.is_file() else None
    if old is not None and not any(BEGIN.format(name) in old for name in HEADS):
        raise UserError(f"--markdown: {path} was not made by flowrl compare; name another file, or remove this one")
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = _blocks(overview, sheet, path, command)
    text = _join_blocks(overview.title, blocks) if old is None else replace_blocks(old, blocks)
    path.write_text(text, encoding="utf-8")


def replace_blocks(old: str, blocks: Mapping[str, str]) -> str:
    """The text with its blocks replaced by these; the text outside the blocks is unchanged."""
    for name, block in blocks.items():
        pattern = re.compile(re.escape(BEGIN.format(name)) + r".*?" + re.escape(END), re.DOTALL)
        old = pattern.sub(lambda _, name=name, block=block: _mark_block(name, block), old)
    return old


def _mark_block(name: str, block: str) -> str:
    return f"{BEGIN.format(name)}\n{block.strip()}\n{END}"


def _join_blocks(title: str, blocks: Mapping[str, str]) -> str:
    parts = [f"# {title}"]
    for name, block in blocks.items():
        head = HEADS[name]
        parts += [] if head is None else [f"## {head}"]
        parts.append(_mark_block(name, block))
    return "\n\n".join(parts) + "\n"


def _blocks(overview: Overview, sheet: SampleSheet | None, path: Path, command: str) -> dict[str, str]:
    blocks = {
        "setting": _setting(overview, command),
        "verdict": _verdict(overview),
        "rewards": _rewards(overview, path),
    }
    blocks["cost"] = tables.markdown_table(tables.cost_table(overview))
    drift = tables.drift_table(overview)
    blocks["drift"] = "Not measured." if drift is None else tables.markdown_table(drift)
    if sheet is not None and sheet.pictures:
        name = f"{path.stem}-samples.png"
        plots.write_samples(sheet, path.with_name(name))
        blocks["samples"] = (
            f"![Held-out samples of seed {sheet.seed}: one row per prompt, one column per variant]({name})"
        )
    heads, rows = tables.run_table(overview)
    blocks["runs"] = tables.markdown_table((heads[:-1], [row[:-1] for row in rows]))  # folders are this machine's own
    return blocks


def _setting(overview: Overview, command: str) -> str:
    lines = ["Made by", "", "```bash", command, "```"]
    lines += ["", *(f"- {note}" for note in overview.notes)] if overview.notes else []
    return "\n".join(lines)


def _verdict(overview: Overview) -> str:
    parts = []
    for reward in overview.rewards:
        for axis in AXES:
            if overview.comparison(axis, reward) is None:
                continue
            parts.append(f"**{headline(overview, axis, reward)}**")
            parts.append("\n".join(f"- {sentence}" for sentence in pair_sentences(overview, axis, reward)))
    parts.append(RULE)
    return "\n\n".join(filter(None, parts))


def _rewards(overview: Overview, path: Path) -> str:
    figure = path.with_name(f"{path.stem}-curves.png")
    plots.write_curves(overview, figure)
    image = f"![Held-out rewards over time and over {overview.unit}-forwards, and seconds per iteration]({figure.name})"
    return f"{tables.markdown_table(tables.heldout_table(overview))}\n\n{image}"
