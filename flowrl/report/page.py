"""report.html: everything in a run's folder on one self-contained page."""

import shlex
from collections import Counter
from datetime import datetime
from pathlib import Path

from flowrl import __version__
from flowrl.report import evaluations, numerals, panels
from flowrl.report.glossary import METRICS, TERMS
from flowrl.report.read import JsonObject, RunData, dict_or_empty, list_or_empty, read_run
from flowrl.report.templates import HERE, template
from flowrl.report.verdict import verdict

NAME = "report.html"
ALARM = ("iteration", "since", "name", "what", "cause", "remedy", "action")


def write(folder: Path, output: Path | None = None) -> Path:
    """Writes the page of a run's folder atomically, by default as report.html in it; returns its path.

    Works for running, killed and old runs. Raises UserError if the folder is not a run's.
    """
    path = output or folder / NAME
    text = render(read_run(folder))
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
    return path


def render(data: RunData) -> str:
    """The page as text. Text from the run's files is escaped."""
    return template(HERE, "page.html").render(_context(data))


def _context(data: RunData) -> dict[str, object]:
    frame = panels.chart_frame(data)
    gallery = evaluations.gallery(data)
    directions = {}
    if len(data.evaluations) > 1:
        directions = evaluations.count_directions(data.evaluations[0], data.evaluations[-1], data.weights)
    return {
        "version": __version__,
        "title": run_title(data),
        "model": str(data.recipe.get("model", "")),
        "folder": data.folder.name,
        "facts": _facts(data),
        "verdict": verdict(data),
        "alarms": [{name: _text_or_empty(alarm.get(name)) for name in ALARM} for alarm in data.alarms],
        "resumes": data.resumes,
        "notes": data.notes,
        "rewards": panels.reward_charts(data, frame),
        "kinds": panels.kind_charts(data, frame),
        "gallery": gallery,
        "tally": directions,
        "witnesses": [n for n, w in data.weights.items() if w == 0],
        "groups": [
            ("hacking", "Reward hacking", panels.hacking_charts(data, frame)),
            ("learning", "Learning", panels.learning_charts(data, frame)),
            ("samples", "Sample statistics", panels.sample_charts(data, frame)),
            ("others", "Other metrics", panels.other_charts(data, frame)),
        ],
        "times": panels.time_chart(data, frame),
        "shares": panels.time_shares(data),
        "recipe": data.recipe_text,
        "versions": _versions_and_machine(data.run),
        "glossary": {**TERMS, **METRICS},
    }


def run_title(data: RunData) -> str:
    """The recipe's name if the run records it, else the folder's."""
    if isinstance(data.run.get("recipe"), str):
        return Path(data.run["recipe"]).stem
    try:
        words = shlex.split(str(data.run.get("command", "")))
    except ValueError:
        words = []
    after = words[words.index("run") + 1 :] if "run" in words else []
    named = [word for word in after if not word.startswith("-") and "=" not in word]
    return Path(named[0]).stem if named else data.folder.resolve().name


def _facts(data: RunData) -> list[tuple[str, str]]:
    """The run's main settings as (name, value), as far as they are known."""
    recipe, train = data.recipe, dict_or_empty(data.recipe.get("train"))
    facts = [("Model", recipe.get("model"))]
    if lora := dict_or_empty(recipe.get("lora")):
        facts.append(("Trained", f"LoRA, rank {lora.get('rank')}"))
    elif recipe.get("full"):
        facts.append(("Trained", "all weights"))
    if {"prompts", "group"} <= set(train):
        facts.append(("Iteration", f"{train['prompts']} prompts × {train['group']} samples"))
    planned = f" of {data.planned:,}" if data.planned and not data.finished else ""
    facts.append(("Iterations", f"{data.last:,}{planned}"))
    if phases := list_or_empty(recipe.get("phases")):
        facts.append(("Phases", str(len(phases))))
    if passed := data.passed_over:
        listed = ", ".join(f"{reason} {number:,.0f}" for reason, number in passed.items())
        facts.append(("Prompts skipped", f"{sum(passed.values()):,.0f} ({listed})"))
    facts.append(("Time", numerals.format_duration(data.seconds)))
    facts.append(("Seed", recipe.get("seed")))
    starts = [s for s in list_or_empty(data.run.get("starts")) if isinstance(s, dict)]
    facts.append(("Started", _date(starts[0].get("time")) if starts else None))
    if data.resumes:
        facts.append(("Resumed", f"{len(data.resumes)} ×"))
    return [(name, str(value)) for name, value in facts if value is not None]


def _date(text: object) -> str | None:
    try:
        return f"{datetime.fromisoformat(str(text)):%Y-%m-%d %H:%M}"
    except ValueError:
        return None


def _versions_and_machine(run: JsonObject) -> list[tuple[str, str]]:
    """Versions and machine as (name, value)."""
    rows = [("flowrl", run["flowrl"])] if "flowrl" in run else []
    for part in ("versions", "machine"):
        for name, value in dict_or_empty(run.get(part)).items():
            rows.append((str(name), _count_values(value) if isinstance(value, list) else value))
    rows += [("command", run["command"])] if "command" in run else []
    return [(name, str(value)) for name, value in rows if value not in ("", None)]


def _count_values(values: list[object]) -> str:
    """Each distinct value once, with its count."""
    return ", ".join(f"{n} × {v}" if n > 1 else v for v, n in Counter(map(str, values)).items())


def _text_or_empty(value: object) -> str:
    return "" if value is None else str(value)
