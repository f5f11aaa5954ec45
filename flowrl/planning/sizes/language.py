"""How much memory a language model's recipe needs on its device, phase by phase, from its config alone."""

import math
from collections.abc import Mapping, Sequence

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from flowrl.contracts import Prompt
from flowrl.planning.costs import arithmetic
from flowrl.planning.sizes import token_memory, token_models
from flowrl.planning.sizes.memory import Phase, Sizes
from flowrl.planning.sizes.prompt_tokens import ASSUMED, MARKS, WORDS
from flowrl.planning.sizes.quantised import copies_in_training
from flowrl.planning.sizes.reading_again import reads_again
from flowrl.planning.sizes.scoring import with_rewards
from flowrl.planning.sizes.seeing import media_tensors, media_tokens
from flowrl.planning.sizes.shared import of_a_rank
from flowrl.planning.sizes.token_models import build_model, bytes_of, config_of
from flowrl.policies import adapters
from flowrl.policies.devices import device_type
from flowrl.policies.language.drawing.static_cache import buffer_size, refuse_static
from flowrl.policies.language.media.features import LIMIT
from flowrl.policies.loading import auto_class_of
from flowrl.policies.merging import touched_bytes
from flowrl.recipe.checks.merging import merges
from flowrl.recipe.checks.roles import contributions
from flowrl.recipe.schema import Recipe
from flowrl.untyped import JSON

DRAW = 28  # bytes a logit of one drawn token: its own, two float32 copies, the float64 distribution and its sums


def sizes(
    recipe: Recipe, prompts: Sequence[Prompt], limit: int, processor: Mapping[str, JSON] | None = None
) -> Sizes | None:
    """The sizes of a recipe whose completions have `limit` tokens at most; None where no config is at hand.

    Weights, adapters and optimizer are exact. Activations are what the policy's own passes hold at most, backward pass
    included, of the longest prompts and completions (token_memory.py); of a forward that needs values, those of a
    rollout are the keys and values of all rows and the logits of a token, and those of training are not known; with a
    static cache they are all of its buffers and the prompts that are read. The media of a prompt are those of the one
    with the largest. processor: arguments of the model's processor. Raises PolicyError for a LoRA that does not fit,
    and where the model cannot have the static cache that is asked for.
    """
    config = config_of(recipe.model)
    if config is None:
        return None
    model, frozen, parameters, few = build_model(recipe, config)
    merged = touched_bytes({"model": model}) if merges(recipe, device_type(recipe.device)) else 0
    learning = list(adapters.trainable({"model": model}))
    state, added = sum(p.numel() * p.element_size() for p in learning), bytes_of(model) - frozen
    train, costs = recipe.train, arithmetic(recipe)
    seen = media_tokens(recipe.model, processor or {}, prompts)
    length = tokens_of(recipe, prompts) + (seen or 0)
    copies = (train.ema is not None and not train.ema_in_host) + recipe.keeps_reference + (train.old is not None)
    moments = token_models.moments(recipe, learning)
    critic, reference = token_models.critic(recipe), token_models.reference_bytes(recipe)
    twin = _twin(recipe, frozen + added, parameters)
    frozen, of_critic = frozen + critic.fixed - few.spared + (reference or 0), critic.moments
    rows, cacheless = costs.rows_at_once, not recipe.rollout.cache or reads_again(recipe.model)
    micro = train.micro_rows or costs.rows_per_update
    at_once = token_memory.Sizes(
        drawn=rows,
        prompts=min(-(-rows // (train.group * contributions(recipe))), train.drawn),
        micro=micro,
        several=micro < costs.rows_per_update,
        length=length,
        limit=limit,
    )
    uniform = token_memory.is_uniform(model, config)
    held = token_memory.held(recipe, config, at_once, cached=not cacheless, uniform=uniform)
    drawing, training = held.drawing, held.training
    dtype = getattr(torch, recipe.dtype.model)
    if drawing is None:
        drawing = _drawn(config, rows, 0 if cacheless else length + limit, dtype)
    words = "keys and values of all rows, and the logits of a token"
    if recipe.rollout.cache == "static":
        refuse_static(model)
        rows, columns = buffer_size(rows, length + limit)
        words = f"buffers of keys and values, {rows} rows of {columns} tokens, those of the prompts as they are read, "
        words += "and the logits of a token"
        drawing = _drawn(config, rows, columns, dtype) + _cache(config, at_once.prompts, length, dtype)
    training = None if training is None else max(training, held.valuing)
    sees = (auto_class_of(config) or AutoModelForCausalLM) is not AutoModelForCausalLM
    if sees:
        media = token_memory.seen(recipe, config, media_tensors(recipe.model, processor or {}, prompts))
        number = train.iterations * train.drawn
        number = min(number, sum(bool(p.media) for p in prompts)) if prompts else number
        stays = 0 if media.kept else min(LIMIT, number * media.features)  # features.py keeps them
        own = media.tensors + media.features
        drawing = max(drawing + at_once.prompts * own, at_once.prompts * media.tensors + media.making) + stays
        training = None if training is None else training + micro * (own + media.kept) + stays
    phases = [
        Phase("rollout", frozen + added + merged + twin, moments + of_critic + copies * state, 0, drawing),
        Phase(
            "training",
            frozen + added + copies_in_training(few, train),
            moments + of_critic + (copies + 1) * state + critic.state,
            0,
            training,
        ),
    ]
    phases = with_rewards(recipe, phases, max((p.text for p in prompts), key=len, default=""))
    name = type(model).__name__
    words = "all tokens of all rows, read again for the last one" if cacheless else words
    words = "nothing, a server draws" if recipe.rollout.engine is not None else words
    left_out = ["the allocator's slack"]
    left_out = ["a critic", *left_out] if not critic.known else left_out
    left_out = ["another model as reference", *left_out] if reference is None else left_out
    if sees:
        words += f"; prompts with {seen} tokens of media" if seen is not None else "; prompts without their media"
    return Sizes(
        {name: parameters},
        sum(p.numel() for p in learning),
        added,
        of_a_rank(recipe, phases, frozen + added, critic.fixed + (reference or 0)),
        (length + limit,),
        name,
        words,
        left_out=", ".join(left_out),
    )


def _twin(recipe: Recipe, whole: int, parameters: int) -> int:
    """Bytes of the copy of the model that draws in another precision; the copy is made in the model's own."""
    width = {"bfloat16": 2, "float16": 2, "int8": 1}.get(recipe.rollout.dtype or "", 0)
    return max(whole, parameters * width) if width else 0


def tokens_of(recipe: Recipe, prompts: Sequence[Prompt]) -> int:
    """Tokens of the longest prompt, from its words or, where it has none to speak of, its characters."""
    said = [" ".join([*(m["content"] for m in p.messages[:-1]), p.text]) for p in prompts]
    return max((max(math.ceil(WORDS * len(text.split())), len(text) // 3) + MARKS for text in said), default=ASSUMED)


def _drawn(config: PretrainedConfig, rows: int, length: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of so many rows, and of the logits of a token of each."""
    return _cache(config, rows, length, dtype) + rows * config.get_text_config().vocab_size * DRAW


def _cache(config: PretrainedConfig, rows: int, length: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of so many rows."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * width * rows * length * dtype.itemsize
