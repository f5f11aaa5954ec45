"""Samples that come with their prompts, opened as a run asks for them."""

from flowrl.contracts import Prompt
from flowrl.core.engine import FromFiles, SamplesOf
from flowrl.policies.pipelines.arguments import open_pixels
from flowrl.policies.pipelines.given_samples import open_noise
from flowrl.reading import pairs
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import Own


def given_samples(recipe: Recipe) -> SamplesOf | None:
    """What opens the samples of a prompt that come from files; None where samples are drawn."""
    if not recipe.train.reads_files:
        return None
    loss = None if isinstance(recipe.objective, Own) else recipe.objective.loss

    def samples_of(prompt: Prompt) -> FromFiles:
        files, scores = pairs.samples_of(prompt)
        noise = [open_noise(file) for file in pairs.noise_of(prompt) or ()] if loss and loss.own_noise else []
        scores = pairs.rewards_of(prompt) or scores if loss and loss.gap else scores
        return FromFiles([file if isinstance(file, str) else open_pixels(file) for file in files], scores, noise)

    return samples_of
