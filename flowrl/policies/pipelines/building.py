"""A policy over a diffusers pipeline, made as a recipe says."""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flowrl.contracts import Coming, Prompt
from flowrl.policies import adapters
from flowrl.policies.attending import refuse_missing
from flowrl.policies.blocks import offload_blocks
from flowrl.policies.devices import device_of
from flowrl.policies.errors import PolicyError
from flowrl.policies.loading import load_pipeline
from flowrl.policies.own import policy_class
from flowrl.policies.pipelines.calls.autoencoders import Autoencoding
from flowrl.policies.pipelines.looks.latent_reward import load as load_reward
from flowrl.policies.pipelines.policy import PipelinePolicy
from flowrl.policies.pipelines.steps.dynamics import Dynamics
from flowrl.policies.pipelines.steps.first_order import walks_ddim
from flowrl.policies.pipelines.teacher import Teacher
from flowrl.policies.pipelines.walks.guided import guide_of
from flowrl.policies.reference_lora import add_reference_lora, reference_name
from flowrl.policies.trainable import make_trainable
from flowrl.policies.weights import weights_of
from flowrl.recipe.calls import check_call
from flowrl.recipe.checks.merging import merges
from flowrl.recipe.checks.steps import PRESERVING_STEP, misfit
from flowrl.recipe.keys.reference import ReferenceKeys
from flowrl.recipe.keys.rewards import fits
from flowrl.recipe.making import step_of
from flowrl.recipe.schema import Recipe
from flowrl.untyped import Pipeline


def build(recipe: Recipe) -> PipelinePolicy:
    """The recipe's pipeline as a policy, with what it trains made trainable.

    Raises PolicyError where it cannot be loaded, RecipeError for a call or a step that does not fit it.
    """
    device, guide = device_of(recipe.device), recipe.sampler.guide
    if recipe.attention is not None:
        refuse_missing(recipe.attention.backend, device)
    loaded = None if guide is None else load_reward(Path(guide.path).expanduser())  # refused before weights are loaded
    names = None if recipe.lora is None else recipe.lora.modules
    pipe = load_pipeline(
        recipe.model, getattr(torch, recipe.dtype.model), recipe.pipeline, recipe.quantize, names, device=device
    )
    dynamics = dynamics_of(recipe, pipe)
    modules = adapters.denoisers(pipe, names)
    make_trainable(recipe, modules)
    if recipe.block_offload:
        offload_blocks(modules, device)
    policy = policy_class(recipe, PipelinePolicy)(
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
        autoencoding=autoencoding_of(recipe, pipe),
    )
    policy.merge = merges(recipe, device.type)
    if guide is not None and loaded is not None:
        policy.guide = guide_of(*loaded, policy.modules, guide.weight, guide.below)
    return policy


def add_reference(policy: PipelinePolicy, recipe: Recipe) -> None:
    """Gives a policy the recipe's references, frozen, where they are others than the model as it is.

    What is called otherwise without being another model shares the modules of the policy, under the weights of the
    reference. Raises PolicyError where it cannot be loaded, RecipeError for a call that does not fit it.
    """
    references = recipe.references
    for number, reference in enumerate(references):
        if reference.use == "lora":
            folder = Path(str(reference.path)).expanduser()
            add_reference_lora(policy.modules, folder, reference_name(number))
    policy.weights = weights_of(policy.modules, use=[one.use for one in references])
    if len(references) == 1 and references[0].when is None and not references[0].is_own_policy:
        return
    policy.teachers = [
        Teacher(_teacher(policy, recipe, reference, number), partial(_takes, reference))
        for number, reference in enumerate(references)
    ]


def references(policy: PipelinePolicy) -> list[dict[str, Any]]:
    """The modules of each reference that is another model."""
    return [one.policy.modules for one in policy.teachers if one.policy.source is not policy.source]


def _takes(reference: ReferenceKeys, prompt: Prompt) -> bool:
    return fits(reference.when, prompt.meta)


def _teacher(policy: PipelinePolicy, recipe: Recipe, reference: ReferenceKeys, number: int) -> PipelinePolicy:
    call = recipe.pipeline if reference.pipeline is None else reference.pipeline
    pipe, modules = policy.source, dict(policy.modules)
    if reference.use == "model":
        pipe = load_pipeline(str(reference.path), getattr(torch, recipe.dtype.model), call)
        modules = adapters.denoisers(pipe, None if recipe.lora is None else recipe.lora.modules)
    else:
        check_call(type(pipe), call)
    teacher = PipelinePolicy(
        pipe,
        modules,
        dynamics_of(recipe, pipe),
        call=call,
        device=policy.device,
        offload=policy.offload,
        autoencoding=autoencoding_of(recipe, pipe),
    )
    teacher.steps_to_one = reference.steps
    if reference.use == "model":
        teacher.weights = lambda name: contextlib.nullcontext()
    else:  # as they are then: a learner gives the policy its copies
        teacher.weights = lambda name: policy.weights(reference_name(number))
    return teacher


def evaluated(policy: PipelinePolicy, recipe: Recipe) -> PipelinePolicy:
    """What evaluations draw from: the policy."""
    return policy


@contextlib.contextmanager
def looking_ahead(policy: PipelinePolicy, coming: Coming) -> Iterator[None]:
    """Within, encoders that come for some prompts also encode those that are coming (see encoding_first.py)."""
    everyone = [policy, policy.looks, *(one.policy for one in policy.teachers)]
    before = [passes.coming for passes in everyone]
    for passes in everyone:
        passes.coming = coming
    try:
        yield
    finally:
        for passes, own in zip(everyone, before, strict=True):
            passes.coming = own


def apart(policy: PipelinePolicy, recipe: Recipe) -> Sequence[Sequence[Any]]:
    """Nothing: all parameters learn together."""
    return []


def build_critic(policy: PipelinePolicy, recipe: Recipe) -> None:
    """Raises PolicyError: the states of a denoising walk have no critic."""
    raise PolicyError("critic: given, but only language models have one; set critic=null")


def retune(policy: PipelinePolicy, recipe: Recipe) -> None:
    """Gives a policy another recipe's step, noise and call. Raises RecipeError where the step does not fit."""
    policy.dynamics, policy.call = dynamics_of(recipe, policy.source), recipe.pipeline
    for teacher in policy.teachers:
        teacher.policy.dynamics = dynamics_of(recipe, teacher.policy.source)


def unfinished(recipe: Recipe, prompts: object) -> None:
    """None: an iteration finishes its samples."""


def view_of(recipe: Recipe, name: str) -> None:
    """None: a recipe of this kind has no views."""


def exploration(recipe: Recipe, unfinished: None = None, ranks: object = None) -> None:
    """None: the trees of denoising steps are plans."""


def autoencoding_of(recipe: Recipe, pipe: Pipeline) -> Autoencoding:
    """How the pipeline's autoencoders work, which are set up so. Raises PolicyError where one cannot."""
    own = recipe.vae
    dtype = None if own.dtype is None else getattr(torch, own.dtype)
    autoencoding = Autoencoding(own.slicing, own.tiling, dtype, own.batch, own.channels_last)
    if own != type(own)():
        autoencoding.set_up(pipe)
    return autoencoding


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
