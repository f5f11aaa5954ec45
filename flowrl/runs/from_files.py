"""Samples that come with their prompts, opened as a run asks for them."""

from typing import Any

from flowrl.contracts import Prompt
from flowrl.core.engine import FromFiles, SamplesOf
from flowrl.core.objectives.texts import ROWS
from flowrl.kinds import kind_of
from flowrl.policies.pipelines.calls.arguments import open_pixels
from flowrl.policies.pipelines.walks.given_samples import open_noise
from flowrl.reading import pairs
from flowrl.recipe.checks.views import paired_view
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import Own


def beside(recipe: Recipe) -> list[Any]:
    """The view of each text of a prompt that a loss compares, None for its pictures as they are; none without views."""
    if (name := paired_view(recipe)) is None:
        return []
    view = kind_of(recipe).building.view_of(recipe, name)
    return [view if row.endswith("masked_img") else None for row in ROWS]


def given_samples(recipe: Recipe) -> SamplesOf | None:
    """What opens the samples of a prompt that come from files; None where samples are drawn."""
    if not recipe.train.reads_files:
        return None
    loss = None if isinstance(recipe.objective, Own) else recipe.objective.loss

    def samples_of(prompt: Prompt) -> FromFiles:
        files, scores = pairs.samples_of(prompt)
        noise = [open_noise(file) for file in pairs.noise_of(prompt) or ()] if loss and loss.own_noise else []
        scores = pairs.rewards_of(prompt) or scores if loss and loss.gap else scores
        shown = beside(recipe)
        return FromFiles([file if isinstance(file, str) else open_pixels(file) for file in files], scores, noise, shown)

    return samples_of
