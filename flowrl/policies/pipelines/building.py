"""A policy over a diffusers pipeline, made as a recipe says."""

import torch

from flowrl.policies import adapters
from flowrl.policies.devices import device_of
from flowrl.policies.loading import load_pipeline
from flowrl.policies.own import policy_class
from flowrl.policies.pipelines.dynamics import Dynamics
from flowrl.policies.pipelines.first_order import walks_ddim
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.policies.trainable import make_trainable
from flowrl.recipe.making import step_of
from flowrl.recipe.schema import Recipe
from flowrl.recipe.steps import PRESERVING_STEP, misfit
from flowrl.untyped import Pipeline


def build(recipe: Recipe) -> PipelinePolicy:
    """The recipe's pipeline as a policy, with what it trains made trainable.

    Raises PolicyError where it cannot be loaded, RecipeError for a call or a step that does not fit it.
    """
    device = device_of(recipe.device)
    pipe = load_pipeline(recipe.model, getattr(torch, recipe.dtype.model), recipe.pipeline)
    dynamics = dynamics_of(recipe, pipe)
    names = None if recipe.lora is None else recipe.lora.modules
    modules = adapters.denoisers(pipe, names)
    make_trainable(recipe, modules)
    return policy_class(recipe, PipelinePolicy)(
        pipe,
        modules,
        dynamics,
        call=recipe.pipeline,
        device=device,
        max_rows=recipe.train.rollout_batch,
        offload=recipe.offload,
        keep_means=recipe.objective.centred,
        guidance_gradient=recipe.objective.guidance_gradient,
        look_call=recipe.sampler.look,
    )


def retune(policy: PipelinePolicy, recipe: Recipe) -> None:
    """Gives a policy another recipe's step, noise and call. Raises RecipeError where the step does not fit."""
    policy.dynamics, policy.call = dynamics_of(recipe, policy.source), recipe.pipeline


def dynamics_of(recipe: Recipe, pipe: Pipeline) -> Dynamics:
    """How a denoising step of the recipe becomes a distribution. Raises RecipeError for a step that does not fit."""
    if walks_ddim(pipe.scheduler) and recipe.sampler.step != PRESERVING_STEP:
        raise misfit(recipe.sampler.step, type(pipe.scheduler).__name__)
    return Dynamics(
        step_of(recipe),
        recipe.sampler.noise,
        reduce=recipe.sampler.reduce,
        storage=getattr(torch, recipe.dtype.trajectory),
        precision=getattr(torch, recipe.dtype.logp),
    )
