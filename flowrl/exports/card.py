"""The README.md beside exported weights: what they are, how they were trained, how well they do, how to load them."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from flowrl import __version__, names
from flowrl.kinds import kind_of
from flowrl.recipe.schema import Recipe


def card(recipe: Recipe, run: Path, kind: str, weights: str, usage: str) -> str:
    """The model card of an export, as Markdown with the front matter that the hub reads.

    weights: which of the run's, in words. Prompt files are named without their folders.
    """
    what = "LoRA" if kind == "lora" else kind_of(recipe).words.whole
    parts = [
        f"---\n{yaml.safe_dump(_front(recipe, kind), sort_keys=False)}---",
        f"# {run.name}: {recipe.model} after reinforcement learning",
        f"A {what} trained with flowrl {__version__}: {weights} weights of {_iterations(run)}, {_learns(recipe)}, "
        f"rewards {_rewards(recipe)}.",
        "## Use",
        f"```python\n{usage}\n```",
        *_numbers(run),
        "## Recipe",
        f"```yaml\n{_recipe(recipe)}```",
    ]
    return "\n\n".join(parts) + "\n"


def _front(recipe: Recipe, kind: str) -> dict[str, Any]:
    library = kind_of(recipe).library(kind)
    front: dict[str, Any] = {"library_name": library, "tags": ["flowrl", "reinforcement-learning"]}
    front["tags"] += ["lora"] if kind == "lora" else []
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", recipe.model) and not Path(recipe.model).exists():
        front |= {"base_model": recipe.model, "base_model_relation": "adapter" if kind == "lora" else "finetune"}
    return front


def _learns(recipe: Recipe) -> str:
    if recipe.lora is None:
        return "all weights trained"
    return f"LoRA rank {recipe.lora.rank}, alpha {recipe.lora.alpha:g}"


def _rewards(recipe: Recipe) -> str:
    return ", ".join(f"{name} ({spec.use}, weight {spec.weight:g})" for name, spec in recipe.rewards.items())


def _iterations(run: Path) -> str:
    summary = _summary(run)
    return f"a run of {summary['iterations']} iterations" if summary else "an unfinished run"


def _summary(run: Path) -> dict[str, Any]:
    path = run / "summary.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # damaged, or not there yet: the weights are what counts
        return {}
    whole = (
        isinstance(found, dict) and isinstance(found.get("iterations"), int) and isinstance(found.get("heldout"), dict)
    )
    return found if whole else {}


def _numbers(run: Path) -> list[str]:
    """A table of held-out means, first against last evaluation; nothing where the run has none."""
    heldout = _summary(run).get("heldout") or {}
    if not heldout:
        return []
    first, last = min(heldout, key=int), max(heldout, key=int)
    rows = [f"| reward | iteration {first} | iteration {last} | n |", "|---|---|---|---|"]
    for name, after in heldout[last].items():
        before = heldout[first][name]
        rows.append(f"| {name} | {_mean(before)} | {_mean(after)} | {after['number']} |")
    note = "Means over the held-out prompts, with standard errors, at equal noise."
    return ["## Held out", "\n".join(rows), note]


def _mean(mean: dict[str, float]) -> str:
    return f"{mean['value']:.3f} ± {mean['error']:.3f}"


def _recipe(recipe: Recipe) -> str:
    values = recipe.model_dump(exclude={"output"})
    for name in ("train", "heldout"):
        source = values["prompts"][name]
        if source is not None and source not in names.WORLD_PROMPTS and Path(source).exists():
            values["prompts"][name] = Path(source).name
    return yaml.safe_dump(values, sort_keys=False, width=120, allow_unicode=True)
