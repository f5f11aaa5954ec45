"""The default strength of noise: published values of each step, by family of model."""

import re

from flowrl import names
from flowrl.recipe.keys.sampling import Sampler
from flowrl.recipe.models import pipeline_class
from flowrl.untyped import JSON

USUAL = 0.7  # of a step without an entry, such as a user's own

# step -> family -> the value of its authors; None: of all other families. It stands beside the step.
NOISE: dict[str, dict[str | None, float]] = {
    name: entry.facts["noise"] for name, entry in names.steps().items() if "noise" in entry.facts
}

# family -> beginning of its pipelines' class names, and what a hub id says of it; the first that fits counts
FAMILIES: dict[str, tuple[str, str]] = {
    "sd3": ("StableDiffusion3", r"stable-diffusion-3|\bsd-?3"),
    "flux": ("Flux", r"flux"),
    "qwen_image_edit": ("QwenImageEdit", r"qwen-?image-edit"),
    "qwen_image": ("QwenImage", r"qwen-?image"),
    "hunyuan": ("Hunyuan", r"hunyuan"),
}


def family_of(model: str) -> str | None:
    """The family of an embedded or local model, read from its index, or of a hub id, guessed from its name.

    None for one that no step treats specially.
    """
    name = pipeline_class(model)
    for family, (beginning, pattern) in FAMILIES.items():
        if name.startswith(beginning) if name is not None else re.search(pattern, model.lower()):
            return family
    return None


def default_noise(step: str, model: str) -> float:
    """The usual strength of a step on a model."""
    by_family = NOISE.get(step, {None: USUAL})
    return by_family.get(family_of(model), by_family[None])


def with_noise(values: dict[str, JSON]) -> dict[str, JSON]:
    """A recipe's values with `sampler.noise` filled in where it is missing or null. Wrong types are left to `check`."""
    sampler, model = values.get("sampler", {}), values.get("model")
    if not isinstance(sampler, dict) or sampler.get("noise") is not None:
        return values
    step = sampler.get("step", Sampler.model_fields["step"].default)
    step = step.get("kind") if isinstance(step, dict) else step
    if not isinstance(step, str) or not isinstance(model, str):
        return values
    return values | {"sampler": sampler | {"noise": default_noise(step, model)}}
