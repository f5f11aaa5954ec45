"""How far training moved a model from the base model, measured on the trained weights.

All on held-out prompts with the same noise, under one plan for all compared runs, whatever plan each trained under:
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

import torch

from flowrl.build import build_policy, set_up
from flowrl.contracts import Policy, Prompt, Samples
from flowrl.core.evaluation import divergence, picture_of
from flowrl.core.refill import join_samples
from flowrl.kinds import kind_of
from flowrl.planning.costs import plan_for
from flowrl.reading.inputs import load_prompts
from flowrl.recipe.load import load
from flowrl.recipe.schema import Recipe, Track
from flowrl.report.evaluations import evenly_spaced
from flowrl.runs.weights import final_weights, load_weights
from flowrl.watch.sample_statistics import sample_statistics

CACHE = "compare.json"
SEED = 3 * 2**32  # added to the recipe's: neither training's noise nor that of evaluations


@dataclass(frozen=True)
class DriftSettings:
    """How drift is measured, alike for all runs. step, noise, steps: the denoising plan; None for a language model."""

    prompts: int
    group: int
    seed: int
    step: str | None
    noise: float | None
    steps: int | None

    @staticmethod
    def of(recipe: Recipe, prompts: int = 16, group: int = 4) -> "DriftSettings":
        """The settings of a comparison whose first recipe is this one."""
        return DriftSettings(prompts, group, recipe.seed + SEED, **kind_of(recipe).sampling(recipe))


def measure_cached(run: Path, settings: DriftSettings) -> dict[str, float | None]:
    """Distance, KL and diversities of a finished run; None where one does not apply.

    They are cached in the run's folder, and measured again only if its weights or the settings have changed.
    """
    key = {"settings": asdict(settings), "weights": digest(final_weights(run))}
    file = run / CACHE
    cached: object = None
    if file.is_file():
        try:
            cached = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            cached = None  # half written: measure again
    if isinstance(cached, dict) and cached.get("key") == key:
        return cached["drift"]
    drift = measure(run, settings)
    aside = file.with_suffix(".tmp")
    aside.write_text(json.dumps({"key": key, "drift": drift}, indent=2) + "\n", encoding="utf-8")
    aside.replace(file)
    return drift


@torch.no_grad()
def measure(run: Path, settings: DriftSettings) -> dict[str, float | None]:
    """See `measure_cached`; always measured anew."""
    recipe = _common_plan(load(str(run / "recipe.yaml"), ["track=null"]), settings)
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


def _common_plan(recipe: Recipe, settings: DriftSettings) -> Recipe:
    """The run's recipe under the common plan of all runs, in which every step but the last draws noise."""
    untracked = recipe.model_copy(update={"track": Track()})
    return kind_of(recipe).sampled_by(untracked, asdict(settings))


def _prompts(recipe: Recipe, number: int) -> list[Prompt]:
    """Held-out prompts, evenly spaced over those that the run evaluates; training prompts if it has none."""
    source, limit = recipe.prompts.heldout, recipe.eval.prompts
    if source is None:
        return evenly_spaced(load_prompts(recipe, recipe.prompts.train, "train", recipe.prompts.limit), number)
    return evenly_spaced(load_prompts(recipe, source, "heldout", limit), number)


def _draw(policy: Policy, recipe: Recipe, prompts: Sequence[Prompt], settings: DriftSettings) -> Samples:
    """One group per prompt: by the ODE, or completions drawn as in training."""
    plan = kind_of(recipe).planning.group_plan(recipe)
    drawn = [
        policy.rollout(part, group_size=settings.group, plan=plan, seed=settings.seed).samples
        for part in _chunks(prompts, recipe.eval.batch // settings.group)
    ]
    return join_samples(drawn)


def _divergence(policy: Policy, recipe: Recipe, prompts: Sequence[Prompt], settings: DriftSettings) -> float:
    batch = recipe.train.micro_rows or recipe.eval.batch
    return divergence(policy, prompts, plan=plan_for(recipe, 0), seed=settings.seed, batch=batch)


def _chunks(prompts: Sequence[Prompt], size: int) -> Iterator[Sequence[Prompt]]:
    size = max(1, size)
    return (prompts[i : i + size] for i in range(0, len(prompts), size))


def _distance(before: Samples, after: Samples) -> float | None:
    first, last = picture_of(before), picture_of(after)
    if first is None or last is None:
        return None
    return float((first - last).double().square().flatten(1).mean(1).sqrt().mean())


def _diversity(samples: Samples) -> float | None:
    statistics = sample_statistics(samples)
    return statistics.get("samples/diversity", statistics.get("samples/distinct"))
