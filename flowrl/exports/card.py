"""The README.md beside exported weights: what they are, how they were trained, how well they do, how to load them."""

import json
import re
from pathlib import Path

import yaml

from flowrl import __version__, names
from flowrl.kinds import kind_of
from flowrl.recipe.schema import Recipe
from flowrl.untyped import JSON


def model_card(recipe: Recipe, run: Path, kind: str, weights: str, usage: str) -> str:
    """The model card of an export, as Markdown with the front matter that the hub reads.

    weights: which of the run's weights, in words. Prompt files are named without their folders.
    """
    what = "LoRA" if kind == "lora" else kind_of(recipe).words.whole
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(recipe, kind), sort_keys=False)}---",
        f"# {run.name}: {recipe.model} after reinforcement learning",
        f"A {what} trained with flowrl {__version__}: {weights} weights of {_iterations_text(run)}, "
        f"{_trained_text(recipe)}, rewards {_rewards_text(recipe)}.",
        "## Use",
        f"```python\n{usage}\n```",
        *_heldout_section(run),
        "## Recipe",
        f"```yaml\n{_recipe_yaml(recipe)}```",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(recipe: Recipe, kind: str) -> dict[str, JSON]:
    library = kind_of(recipe).library(kind)
    front: dict[str, JSON] = {"library_name": library, "tags": ["flowrl", "reinforcement-learning"]}
    front["tags"] += ["lora"] if kind == "lora" else []
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", recipe.model) and not Path(recipe.model).exists():
        front |= {"base_model": recipe.model, "base_model_relation": "adapter" if kind == "lora" else "finetune"}
    return front


def _trained_text(recipe: Recipe) -> str:
    if recipe.lora is None:
        return "all weights trained"
    return f"LoRA rank {recipe.lora.rank}, alpha {recipe.lora.alpha:g}"


def _rewards_text(recipe: Recipe) -> str:
    return ", ".join(f"{name} ({spec.use}, weight {spec.weight:g})" for name, spec in recipe.rewards.items())


def _iterations_text(run: Path) -> str:
    summary = _read_summary(run)
    return f"a run of {summary['iterations']} iterations" if summary else "an unfinished run"


def _read_summary(run: Path) -> dict[str, JSON]:
    path = run / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # damaged or missing: the weights can be exported anyway
        return {}
    valid = (
        isinstance(summary, dict)
        and isinstance(summary.get("iterations"), int)
        and isinstance(summary.get("heldout"), dict)
    )
    return summary if valid else {}


def _heldout_section(run: Path) -> list[str]:
    """A table of held-out means of the first and the last evaluation; empty if the run has none."""
    heldout = _read_summary(run).get("heldout") or {}
    if not heldout:
        return []
    first, last = min(heldout, key=int), max(heldout, key=int)
    rows = [f"| reward | iteration {first} | iteration {last} | n |", "|---|---|---|---|"]
    for name, after in heldout[last].items():
        before = heldout[first][name]
        rows.append(f"| {name} | {_format_mean(before)} | {_format_mean(after)} | {after['number']} |")
    note = "Means over the held-out prompts, with standard errors, at equal noise."
    return ["## Held out", "\n".join(rows), note]


def _format_mean(mean: dict[str, float]) -> str:
    return f"{mean['value']:.3f} ± {mean['error']:.3f}"


def _recipe_yaml(recipe: Recipe) -> str:
    values = recipe.model_dump(exclude={"output"})
    for name in ("train", "heldout"):
        source = values["prompts"][name]
        if source is not None and source not in names.WORLD_PROMPTS and Path(source).exists():
            values["prompts"][name] = Path(source).name
    return yaml.safe_dump(values, sort_keys=False, width=120, allow_unicode=True)
