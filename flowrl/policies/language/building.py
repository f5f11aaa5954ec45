"""A policy over a causal language model, made as a recipe says."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flowrl.contracts import ALONE, Coming, Environment, Ranks
from flowrl.environments.building import build_agent, build_environment
from flowrl.environments.calls import Reader
from flowrl.environments.observations import Observations
from flowrl.environments.workers import Workers
from flowrl.kinds.language import section_of
from flowrl.policies import adapters
from flowrl.policies.attending import refuse_missing
from flowrl.policies.devices import device_of
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.critic import TokenValues
from flowrl.policies.language.drawing.forwards import read_whole
from flowrl.policies.language.drawing.guided import corrections, hints
from flowrl.policies.language.drawing.partial import Unfinished, partial_rollouts
from flowrl.policies.language.drawing.search import deepsearch
from flowrl.policies.language.drawing.static_cache import StaticCache, refuse_static
from flowrl.policies.language.drawing.trees import tree_grpo, treepo
from flowrl.policies.language.drawing.values import values
from flowrl.policies.language.media.views import PictureView, Views, viewed
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.language.talks.again import talks_with_hints, values_of_turns
from flowrl.policies.language.talks.conversations import Conversations
from flowrl.policies.language.talks.discussion import Discussing, Speakers, discussion
from flowrl.policies.language.talks.trees import search_of_turns, tree_of_turns
from flowrl.policies.loading import load_language, load_processor
from flowrl.policies.own import policy_class
from flowrl.policies.recomputing import checkpoint_gradients
from flowrl.policies.reference_lora import add_reference_lora
from flowrl.policies.roles import add_roles, parameters_by_role
from flowrl.policies.trainable import make_trainable
from flowrl.policies.weights import weights_of
from flowrl.recipe.checks.merging import merges
from flowrl.recipe.checks.views import drawing_view, looks, scored_view
from flowrl.recipe.keys.begun import arguments
from flowrl.recipe.keys.credit import OF_TREES
from flowrl.recipe.schema import Recipe
from flowrl.untyped import LanguageModel, Tokenizer

# kind of generation.tree or again -> the function, whose keyword arguments are its keys; and of conversations
EXPLORATIONS: dict[str, Callable[..., Any]] = {
    "treepo": treepo,
    "tree_grpo": tree_grpo,
    "deepsearch": deepsearch,
    "hints": hints,
    "corrections": corrections,
    "values": values,
}
OF_TALKS: dict[str, Callable[..., Any]] = {
    "tree_grpo": tree_of_turns,
    "deepsearch": search_of_turns,
    "hints": talks_with_hints,
    "values": values_of_turns,
}


def build(recipe: Recipe) -> LanguagePolicy:
    """The recipe's model as a policy, with its trained part trainable. Raises PolicyError if it cannot be loaded."""
    device, given = device_of(recipe.device), section_of(recipe)
    if recipe.attention is not None:
        refuse_missing(recipe.attention.backend, device)
    environment = _environment(recipe)
    model, tokenizer = load_language(recipe.model, getattr(torch, recipe.dtype.model), recipe.quantize)
    policy = policy_class(recipe, LanguagePolicy)(
        model,
        tokenizer,
        template=given.chat_template,
        system=given.system,
        chat_arguments=given.chat_arguments,
        device=device,
        stop=given.stop,
        max_rows=recipe.train.rollout_batch,
        precision=getattr(torch, recipe.dtype.logp),
        keep_entropy=recipe.objective.entropy_share is not None or recipe.objective.weight == "inverse_entropy",
        keep_squares=recipe.advantage.credit.kind == "optimal_token",
        keep_ends=recipe.advantage.credit.kind not in ("broadcast", *OF_TREES),
        batch_invariant=recipe.rollout.batch_invariant,
        processor=load_processor(recipe.model, given.processor),
    )
    read_whole(policy.model, not recipe.rollout.cache)
    policy.static = static_cache(recipe, policy.model)
    make_trainable(recipe, policy.modules)
    policy.merge = merges(recipe, device.type)
    _add_environment(policy, environment, recipe)
    if recipe.roles is not None:
        policy.roles = recipe.roles.labels
        add_roles(policy.modules, policy.roles, recipe.seed)
    return policy


def static_cache(recipe: Recipe, model: LanguageModel) -> StaticCache | None:
    """Buffers of fixed size for keys and values, where the recipe asks for them. Raises PolicyError where the model
    cannot have them."""
    if recipe.rollout.cache != "static":
        return None
    refuse_static(model)
    return StaticCache(**({} if recipe.compile is None else {"backend": recipe.compile.backend}))


def _environment(recipe: Recipe) -> Any:
    """What answers the model, or asks it; None without any. Raises UserError where it cannot be made."""
    given = recipe.environment
    if given is None or given.agent is None:
        return None if given is None else build_environment(given)
    from flowrl.engines.agents import Agents

    return Agents(
        build_agent(given),
        Workers(given.workers, given.deadline),
        turns=given.turns,
        turn_tokens=given.turn_tokens,
        batch=given.batch,
    )


def _add_environment(policy: LanguagePolicy, environment: Any, recipe: Recipe) -> None:
    """Lets a policy talk to what `_environment` made."""
    if recipe.environment is not None and recipe.environment.agent is not None:
        policy.conversations = environment
    elif environment is not None:
        add_conversations(policy, environment, recipe)


def told_tools(recipe: Recipe, environment: Environment | None = None) -> dict[str, Any]:
    """What a recipe's chat template is given beside its own arguments: the tools, where it tells of them."""
    given = recipe.environment
    if given is None or given.agent is not None or given.tell != "template":
        return {}
    schemas = list((build_environment(given) if environment is None else environment).tools())
    return {"tools": schemas} if schemas else {}


def add_conversations(policy: LanguagePolicy, environment: Environment, recipe: Recipe) -> None:
    """Lets a policy talk to an environment, told of its tools as the recipe says.

    Raises UserError where its chat template cannot say what it is shown.
    """
    given, drawing = recipe.environment, section_of(recipe)
    assert given is not None
    schemas, told = list(environment.tools()), told_tools(recipe, environment)
    arguments = drawing.chat_arguments | told
    policy.encode = policy.encoder(template=drawing.chat_template, system=drawing.system, arguments=arguments)
    if told and not policy.encode.shows_arguments():
        names = ", ".join(schema["function"]["name"] for schema in schemas)
        raise PolicyError(
            f"environment.tell: the model's chat template does not tell it of its tools ({names}); set "
            "environment.tell=none and say it in generation.system or the prompts, or give another model"
        )
    observe = Observations(
        policy.tokenizer,
        role=given.role,
        arguments=arguments,
        system=drawing.system,
        frame=given.frame,
        writer=None if policy.processor is None else policy.encode.writer,
    )
    policy.conversations = Conversations(
        environment,
        observe,
        Reader(policy.tokenizer, schemas),
        Workers(given.workers, given.deadline),
        turns=given.turns,
        turn_tokens=given.turn_tokens,
    )


def evaluated(policy: LanguagePolicy, recipe: Recipe) -> LanguagePolicy | Discussing:
    """What evaluations draw from: the policy, or the discussions that its roles hold."""
    return policy if recipe.roles is None else Discussing(policy, Speakers(**recipe.roles.model_dump()))


def looking_ahead(policy: LanguagePolicy, coming: Coming) -> AbstractContextManager[None]:
    """Nothing is done for prompts before they are drawn."""
    return nullcontext()


def apart(policy: LanguagePolicy | TokenValues, recipe: Recipe) -> Sequence[Sequence[Any]]:
    """The parameters of each role, whose gradients are clipped by themselves; nothing where there is one."""
    return [] if recipe.roles is None else parameters_by_role(policy.modules, recipe.roles.labels)


def add_reference(policy: LanguagePolicy, recipe: Recipe) -> None:
    """Gives a policy the recipe's reference, frozen, where it is another than the model as it is.

    Raises PolicyError where it cannot be loaded, or has other tokens.
    """
    reference = recipe.references[0]
    if reference.use == "lora":
        add_reference_lora(policy.modules, Path(str(reference.path)).expanduser())
    policy.weights = weights_of(policy.modules, use=reference.use)
    if reference.use == "model":
        model, tokenizer = load_language(str(reference.path), getattr(torch, recipe.dtype.model))
        check_tokens_agree(
            policy, tokenizer, model, str(reference.path), exact=recipe.objective.kl_kind in ("exact", "forward", "jsd")
        )
        policy.teacher = model.to(policy.device)


def references(policy: LanguagePolicy) -> list[dict[str, LanguageModel]]:
    """The modules of another model as reference."""
    return [] if policy.teacher is None else [{"reference": policy.teacher}]


def build_critic(policy: LanguagePolicy, recipe: Recipe) -> TokenValues:
    """The recipe's critic. Raises PolicyError where its model cannot be loaded, or has other tokens."""
    given = recipe.critic
    assert given is not None
    model, tokenizer = load_language(given.path or recipe.model, getattr(torch, recipe.dtype.model))
    if given.path is not None:
        check_tokens_agree(policy, tokenizer, model, given.path, exact=False, place="critic.path")
    values = TokenValues(model, device=policy.device, pad=policy.pad, roles=policy.roles)
    if given.use == "lora":
        adapters.add_lora({"critic": model}, rank=given.rank, alpha=given.rank, targets="all", seed=recipe.seed)
        if policy.roles:
            values.roles = policy.roles
            add_roles({"critic": model}, policy.roles, recipe.seed)
    else:
        adapters.train_full({"critic": model})
    if recipe.train.gradient_checkpointing:
        checkpoint_gradients({"critic": model}, recipe.train.recompute_every)
    return values


def check_tokens_agree(
    policy: LanguagePolicy,
    tokenizer: Tokenizer,
    model: LanguageModel,
    path: str,
    *,
    exact: bool,
    place: str = "reference.path",
) -> None:
    """Raises PolicyError where another model's tokens are not those of the policy.

    exact: distributions over the vocabulary are compared, which then have to be of one size; models of one family may
    pad theirs differently.
    """
    own, other = policy.tokenizer.get_vocab(), tokenizer.get_vocab()
    if own != other:
        differ = sum(other.get(token) != number for token, number in own.items()) + len(other.keys() - own.keys())
        raise PolicyError(
            f"{place}: the tokenizer of {path!r} differs from the trained model's in {differ} tokens; give a "
            "model with the same tokenizer"
        )
    sizes = [network.config.get_text_config().vocab_size for network in (model, policy.model)]
    if exact and sizes[0] != sizes[1]:
        raise PolicyError(
            f"reference.path: {path!r} gives {sizes[0]} logits a token, the trained model {sizes[1]}, and objective."
            "kl_kind (exact, forward, jsd) compares all of them; set objective.kl_kind=k2, or give another model"
        )


def retune(policy: LanguagePolicy, recipe: Recipe) -> None:
    """Gives a policy another recipe's chat template and system message."""
    given = section_of(recipe)
    policy.encode = policy.encoder(template=given.chat_template, system=given.system, arguments=given.chat_arguments)
    policy.conversations = None
    _add_environment(policy, _environment(recipe), recipe)


def view_of(recipe: Recipe, name: str | None) -> PictureView | None:
    """The view of that name; None without one."""
    if name is None:
        return None
    view = recipe.views[name]
    return PictureView(name, view.kind, view.given, view.each)


def views_of(recipe: Recipe) -> Views | None:
    """What is drawn, and looked at once more, beside changed pictures; None where nothing is."""
    drawn, beside = drawing_view(recipe, "draws"), drawing_view(recipe, "beside")
    if not looks(recipe):
        return None
    return Views(
        draws=view_of(recipe, drawn),
        number=0 if drawn is None else recipe.views[drawn].draws,
        clean=drawn is not None and recipe.views[drawn].scored == "clean",
        beside=view_of(recipe, beside),
        further=0 if beside is None else recipe.views[beside].beside,
        second=view_of(recipe, scored_view(recipe)),
    )


def unfinished(recipe: Recipe, prompts: Sequence[Any]) -> Unfinished | None:
    """What a run keeps of completions that an iteration leaves unfinished; None where none does."""
    return None if section_of(recipe).partial is None else Unfinished(prompts)


def exploration(
    recipe: Recipe, unfinished: Unfinished | None = None, ranks: Ranks | None = None
) -> Callable[..., Any] | None:
    """A function (policy, drawing, score) where completions are drawn in more than one go; None if they are plainly."""
    explore, views = _exploration(recipe, unfinished, ranks or ALONE), views_of(recipe)
    return explore if views is None else partial(viewed, views=views, explore=explore)


def _exploration(recipe: Recipe, unfinished: Unfinished | None, ranks: Ranks) -> Callable[..., Any] | None:
    """The same beside pictures as they are."""
    given = section_of(recipe)
    if given.partial is not None and unfinished is not None:
        return partial(partial_rollouts, tokens=given.partial, unfinished=unfinished, ranks=ranks)
    if recipe.roles is not None:
        return partial(discussion, speakers=Speakers(**recipe.roles.model_dump()))
    if recipe.rollout.engine is not None:
        from flowrl.engines.remote import drawn_elsewhere, engine_of

        return partial(drawn_elsewhere, engine=engine_of(recipe.rollout.engine, recipe.model), ranks=ranks)
    section = given.tree or given.again
    of = EXPLORATIONS if recipe.environment is None else OF_TALKS
    return None if section is None else partial(of[section.kind], **arguments(section))
