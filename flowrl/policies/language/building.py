"""A policy over a causal language model, made as a recipe says."""

import torch

from flowrl.kinds.language import section_of
from flowrl.policies.devices import device_of
from flowrl.policies.language.chat import Encoder
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.loading import load_language
from flowrl.policies.own import policy_class
from flowrl.policies.trainable import make_trainable
from flowrl.recipe.schema import Recipe


def build(recipe: Recipe) -> LanguagePolicy:
    """The recipe's model as a policy, with its trained part trainable. Raises PolicyError if it cannot be loaded."""
    device, given = device_of(recipe.device), section_of(recipe)
    model, tokenizer = load_language(recipe.model, getattr(torch, recipe.dtype.model))
    policy = policy_class(recipe, LanguagePolicy)(
        model,
        tokenizer,
        template=given.chat_template,
        system=given.system,
        device=device,
        max_rows=recipe.train.rollout_batch,
        precision=getattr(torch, recipe.dtype.logp),
        keep_entropy=recipe.objective.entropy_share is not None,
    )
    make_trainable(recipe, policy.modules)
    return policy


def retune(policy: LanguagePolicy, recipe: Recipe) -> None:
    """Gives a policy another recipe's chat template and system message."""
    given = section_of(recipe)
    policy.encode = Encoder(policy.tokenizer, template=given.chat_template, system=given.system)
