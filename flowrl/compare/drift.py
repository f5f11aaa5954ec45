"""How far training took a model from where it began, measured on the weights that it left.

All on held-out prompts at equal noise, under one plan for all runs that are compared, whatever plan each trained under:
distance     root mean square over pixels between the ODE samples of the base model and of the trained one, mean over
             samples, in [0, 1]; the diversity within a group is on the same scale
kl           exact divergence of the trained model's step from the base model's, a latent element, mean over the steps
             of stochastic rollouts of the trained model (of a language model: a token, over the vocabulary)
diversity    samples/diversity, or samples/distinct of texts (flowrl/watch/sample_statistics.py), of groups drawn for
             one prompt
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flowrl.build import AnyPolicy, build_policy, set_up
from flowrl.contracts import Prompt, Samples
from flowrl.core.evaluation import divergence, picture_of
from flowrl.core.refill import joined_samples
from flowrl.planning.costs import eval_plan, plan_for
from flowrl.reading.inputs import load_prompts
from flowrl.recipe.load import load
from flowrl.recipe.schema import Recipe, Sampler, Track
from flowrl.report.evaluations import evenly_spaced
from flowrl.runs.weights import final_weights, load_weights
from flowrl.watch.sample_statistics import sample_statistics

CACHE = "compare.json"
SEED = 3 * 2**32  # added to the recipe's: neither training's noise nor that of evaluations


@dataclass(frozen=True)
class Settings:
    """What is measured alike for all runs. step, noise, steps: the plan of denoising; null for a language model."""

    prompts: int
    group: int
    seed: int
    step: str | None
    noise: float | None
    steps: int | None

    @staticmethod
    def of(recipe: Recipe, prompts: int = 16, group: int = 4) -> "Settings":
        """The settings for a comparison whose first recipe this is."""
        seed = recipe.seed + SEED
        if recipe.generation is not None:
            return Settings(prompts, group, seed, None, None, None)
        sampler = recipe.sampler
        return Settings(prompts, group, seed, sampler.step, sampler.noise, recipe.eval.steps or sampler.steps)


def measured(run: Path, settings: Settings) -> dict[str, float | None]:
    """Distance, KL and diversities of a finished run; None where one has no meaning for it.

    They are kept in the run's folder, and measured anew only where its weights or the settings are others.
    """
    key = {"settings": asdict(settings), "weights": digest(final_weights(run))}
    file = run / CACHE
    kept: Any = None
    if file.is_file():
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            kept = None  # half written; it is measured again
    if isinstance(kept, dict) and kept.get("key") == key:
        return kept["drift"]
    found = measure(run, settings)
    aside = file.with_suffix(".tmp")
    aside.write_text(json.dumps({"key": key, "drift": found}, indent=2) + "\n", encoding="utf-8")
    aside.replace(file)
    return found


@torch.no_grad()
def measure(run: Path, settings: Settings) -> dict[str, float | None]:
    """See `measured`; never from what was kept."""
    recipe = _common(load(str(run / "recipe.yaml"), ["track=null"]), settings)
    set_up(recipe)
    prompts = _prompts(recipe, settings.prompts)
    policy = build_policy(recipe)
    before = _draw(policy, recipe, prompts, settings)
    load_weights(policy, run)
    after = _draw(policy, recipe, prompts, settings)
    return {
        "distance": _distance(before, after),
        "kl": _divergence(policy, recipe, prompts, settings) if recipe.lora is not None else None,
        "diversity_base": _diversity(before),
        "diversity": _diversity(after),
    }


def digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files."""
    whole = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        whole.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                whole.update(block)
    return whole.hexdigest()


def _common(recipe: Recipe, settings: Settings) -> Recipe:
    """The run's recipe with the plan that all runs are measured under: every step but the last draws noise."""
    more: dict[str, Any] = {"track": Track()}
    if recipe.generation is None:
        sampler = Sampler(step=settings.step or "", noise=settings.noise or 0.0, steps=settings.steps or 1)
        more |= {"sampler": sampler, "eval": recipe.eval.model_copy(update={"steps": settings.steps})}
    return recipe.model_copy(update=more)


def _prompts(recipe: Recipe, number: int) -> list[Prompt]:
    """Held-out prompts, evenly from the first to the last that the run evaluates; training prompts without any."""
    source, limit = recipe.prompts.heldout, recipe.eval.prompts
    if source is None:
        return evenly_spaced(load_prompts(recipe, recipe.prompts.train, "train", recipe.prompts.limit), number)
    return evenly_spaced(load_prompts(recipe, source, "heldout", limit), number)


def _draw(policy: AnyPolicy, recipe: Recipe, prompts: Sequence[Prompt], settings: Settings) -> Samples:
    """A group a prompt: by the ODE, or of completions as they are drawn in training."""
    plan: Any = eval_plan(recipe) if recipe.generation is None else plan_for(recipe, 0)
    drawn = [
        policy.rollout(part, group_size=settings.group, plan=plan, seed=settings.seed).samples
        for part in _parts(prompts, recipe.eval.batch // settings.group)
    ]
    return joined_samples(drawn)


def _divergence(policy: AnyPolicy, recipe: Recipe, prompts: Sequence[Prompt], settings: Settings) -> float:
    batch = recipe.train.micro_batch or recipe.eval.batch
    return divergence(policy, prompts, plan=plan_for(recipe, 0), seed=settings.seed, batch=batch)


def _parts(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    size = max(1, size)
    return (prompts[i : i + size] for i in range(0, len(prompts), size))


def _distance(before: Samples, after: Samples) -> float | None:
    first, last = picture_of(before), picture_of(after)
    if first is None or last is None:
        return None
    return float((first - last).double().square().flatten(1).mean(1).sqrt().mean())


def _diversity(samples: Samples) -> float | None:
    found = sample_statistics(samples)
    return found.get("samples/diversity", found.get("samples/distinct"))
