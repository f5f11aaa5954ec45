"""Which steps fit a model, along a flow or the noise table of one that predicts noise, and how strong they may be."""

import functools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from flowrl import names
from flowrl.known.places import config_place
from flowrl.parts import KINDS
from flowrl.recipe.checks.objectives import check_kl_mask
from flowrl.recipe.errors import RecipeError
from flowrl.recipe.schema import Recipe
from flowrl.recipe.sections import check_arguments, keys

PRESERVING_STEP = "ddim"  # on a model that predicts noise it takes its variance-preserving form by itself


def facts_of(step: str) -> Mapping[str, Any]:
    """What is said beside a step (samplers/facts.py); the module of a user's own is imported. Raises UserError."""
    return names.find(step, names.steps(), "step").facts


def noise_scheduler(model: str) -> str | None:
    """Class of the scheduler of a model that predicts noise, v or the image.

    None where it follows a flow, and for a hub id that is not known here, whose scheduler is known only once loaded.
    """
    path = config_place(model) / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return None
    config = json.loads(path.read_text(encoding="utf-8"))
    name = config.get("_class_name", "")
    flow = "Flow" in name or config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    return None if flow else name


@functools.cache
def draws_at_the_end(step: str, model: str) -> bool:
    """Whether a step draws noise where it arrives at the data, s_next = 0, the last of its table.

    Its facts say so: the noise of cps and a flow's ddim is a share of s_next. Models that predict noise end a little
    above 0; where a hub id leaves open which kind it is, a ddim step is taken to draw.
    """
    if step == "ddim":
        path = config_place(model) / "scheduler" / "scheduler_config.json"
        return noise_scheduler(model) is not None or not path.is_file()
    return bool(facts_of(step).get("draws_at_zero", True))


def misfit(step: str, scheduler: str) -> RecipeError:
    """The error for a flow's step on a model that predicts noise."""
    problem = f"got {step!r}, a step along a flow, but this model predicts noise (its scheduler is a {scheduler})"
    return RecipeError("sampler.step", problem, f"accepted: {PRESERVING_STEP}, whose eta is sampler.noise")


def check_step(recipe: Recipe) -> Iterator[RecipeError]:
    """A step that is not known, one that draws no noise, and one that does not fit the loss or the model."""
    sampler = recipe.sampler
    try:
        entry = names.find(sampler.step, names.steps(), "step")
    except names.UserError as error:
        yield RecipeError("sampler.step", str(error), "name another step")
        return
    lacking = [name for name in KINDS["step"].given if entry.accepts is not None and name not in entry.accepts]
    if lacking:
        problem = f"{sampler.step!r} takes no {lacking[0]!r}, which every step is called with"
        yield RecipeError("sampler.step", problem, f"give it an argument {lacking[0]}")
        return
    accepted = tuple(p.name for p in keys("step", entry))
    yield from check_arguments("sampler.step_args", sampler.step_args, entry, accepted)
    stochastic = [name for name, e in names.steps().items() if e.stochastic]
    need = f"objective.preset {recipe.objective.preset!r} needs log-probabilities, hence a stochastic step"
    if not entry.stochastic:
        yield RecipeError("sampler.step", f"got {sampler.step!r}, but {need}", f"accepted: {', '.join(stochastic)}")
    elif sampler.noise == 0:
        yield RecipeError("sampler.noise", f"got 0, but {need}", "set sampler.noise above 0, such as 0.7")
    yield from check_kl_mask(recipe, bool(entry.facts.get("unit_variance")))
    yield from check_path(recipe)


def check_path(recipe: Recipe) -> Iterator[RecipeError]:
    """What does not fit between the step and the model's scheduler, where that is known before it is loaded."""
    step = recipe.sampler.step
    if step == "vp_ddim":
        problem = f"got {step!r}, the form that {PRESERVING_STEP!r} takes on a model that predicts noise"
        yield RecipeError("sampler.step", problem, f"set sampler.step={PRESERVING_STEP}")
    elif facts_of(step).get("share") and recipe.sampler.noise > 1:
        problem = f"got {recipe.sampler.noise:g}, but the noise of {step!r} is a share of what may be drawn afresh"
        yield RecipeError("sampler.noise", problem, "accepted: a number above 0 and up to 1, or null")
    elif scheduler := noise_scheduler(recipe.model):
        if step != PRESERVING_STEP:
            yield misfit(step, scheduler)
        yield from _own_table(recipe, scheduler)


def _own_table(recipe: Recipe, scheduler: str) -> Iterator[RecipeError]:
    """What needs a flow's sigma table or velocity, on a model that has neither."""
    sampler, tree = recipe.sampler, recipe.sampler.tree
    for place, used, off in (
        ("sampler.schedule.kind", sampler.schedule.kind != "own", "own"),
        ("sampler.schedule.merge", sampler.schedule.merge is not None, "null"),
        ("sampler.tail", sampler.tail is not None, "null"),
        ("sampler.tree.strides", tree is not None and (tree.strides or [1]) != [1], "null"),
        ("eval.solver", recipe.eval.solver != "euler", "euler"),
    ):
        if used:
            problem = f"given, but this model predicts noise and is walked on its own table (scheduler {scheduler})"
            yield RecipeError(place, problem, f"set {place}={off}")
