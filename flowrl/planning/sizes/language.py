"""How much memory a language model's recipe needs on its device, phase by phase, from its config alone."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from flowrl.contracts import Prompt
from flowrl.known.places import config_place
from flowrl.planning.costs import arithmetic
from flowrl.planning.sizes.activations import FusedAttention
from flowrl.planning.sizes.few_bits import quantised_bytes
from flowrl.planning.sizes.memory import ASSUMED, WORDS, Phase, Sizes, with_rewards
from flowrl.planning.sizes.quantised import QuantisedBytes, copies_in_training
from flowrl.planning.sizes.reading_again import reads_again
from flowrl.planning.sizes.saved import count_saved, storage_of
from flowrl.planning.sizes.seeing import media_tokens
from flowrl.planning.sizes.shared import of_a_rank
from flowrl.policies import adapters
from flowrl.policies.computing import compute_as_inputs
from flowrl.policies.devices import device_type
from flowrl.policies.language.static_cache import buffer_size, refuse_static
from flowrl.policies.loading import auto_class_of, reading_part
from flowrl.policies.merging import touched_bytes
from flowrl.policies.recomputing import checkpoint_gradients
from flowrl.policies.roles import add_roles
from flowrl.policies.trainable import freeze
from flowrl.recipe.computing import adapters_as_model
from flowrl.recipe.merging import merges
from flowrl.recipe.models import gguf_file, missing_package
from flowrl.recipe.schema import Recipe
from flowrl.untyped import JSON, LanguageModel
from samplers.tokens import token_logp

DRAW = 28  # bytes a logit of one drawn token: its own, two float32 copies, the float64 distribution and its sums


MARKS = 24  # tokens that a chat template puts around a prompt, roughly


def sizes(
    recipe: Recipe, prompts: Sequence[Prompt], limit: int, processor: Mapping[str, JSON] | None = None
) -> Sizes | None:
    """The sizes of a recipe whose completions have `limit` tokens at most; None where no config is at hand.

    Weights, adapters and optimizer are exact. Activations of training are what autograd keeps of a micro-batch of the
    longest prompts and completions; those of a rollout are the keys and values of all rows and the logits of a token,
    with a static cache all of its buffers and the prompts that are read.
    The tokens of pictures are those of the prompt with the largest; what a tower that learns keeps of them is left out.
    processor: arguments of the model's processor.
    A critic's activations are taken to be no more than the policy's, which it learns before. A whole model as reference
    is not counted. Raises PolicyError for a LoRA that does not fit, and where the model cannot have
    the static cache that is asked for.
    """
    config = config_of(recipe.model)
    if config is None:
        return None
    model, frozen, parameters, few = build_model(recipe, config)
    dtype = getattr(torch, recipe.dtype.model)
    merged = touched_bytes({"model": model}) if merges(recipe, device_type(recipe.device)) else 0
    learning = list(adapters.trainable({"model": model}))
    state, added = sum(p.numel() * p.element_size() for p in learning), _bytes(model) - frozen
    seen = media_tokens(recipe.model, processor or {}, prompts)
    train, length = recipe.train, tokens_of(recipe, prompts) + (seen or 0)
    micro = train.micro_rows or arithmetic(recipe).rows_per_update
    copies = (train.ema is not None and not train.ema_in_host) + recipe.keeps_reference + (train.old is not None)
    moments = _moments(recipe, learning)
    critic = _critic(recipe)
    frozen, of_critic = frozen + critic.fixed - few.spared, critic.moments
    copies_of_weights = copies_in_training(few, train)
    rows = arithmetic(recipe).rows_at_once
    cacheless = not recipe.rollout.cache or reads_again(recipe.model)
    words = "keys and values of all rows, and the logits of a token"
    if recipe.rollout.cache == "static":
        refuse_static(model)
        rows, columns = buffer_size(rows, length + limit)
        words = f"buffers of keys and values, {rows} rows of {columns} tokens, those of the prompts as they are read, "
        words += "and the logits of a token"
        drawing = _cache(config, rows, columns, dtype) + _cache(config, -(-rows // train.group), length, dtype)
    else:
        drawing = 0 if cacheless else _cache(config, rows, length + limit, dtype)
    drawing += rows * config.get_text_config().vocab_size * DRAW
    precision = getattr(torch, recipe.dtype.logp)
    kept = _kept(model, micro, length, limit, precision)
    if kept is not None and train.gradient_checkpointing:
        checkpoint_gradients({"model": model}, train.recompute_every)
        block = kept // config.get_text_config().num_hidden_layers  # one is computed again at a time
        again = _kept(model, micro, length, limit, precision)
        kept = None if again is None else again + block
    if kept is not None and train.offload_activations:
        kept //= config.get_text_config().num_hidden_layers
    phases = [
        Phase("rollout", frozen + added + merged, moments + of_critic + copies * state, 0, drawing),
        Phase(
            "training",
            frozen + added + copies_of_weights,
            moments + of_critic + (copies + 1) * state + critic.state,
            0,
            kept,
        ),
    ]
    name = type(model).__name__
    words = "the logits of a token, without what reads all tokens of all rows again" if cacheless else words
    unknown = "" if critic.known else "a critic, "
    left_out = f"another model as reference, {unknown}activations of rewards, the allocator's slack"
    if (auto_class_of(config) or AutoModelForCausalLM) is not AutoModelForCausalLM:
        words += f"; prompts with {seen} tokens of media" if seen is not None else "; prompts without their media"
        left_out = f"what a tower that learns keeps of media, {left_out}"
    return Sizes(
        {name: parameters},
        sum(p.numel() for p in learning),
        added,
        of_a_rank(recipe, with_rewards(recipe, phases), frozen + added, critic.fixed),
        (length + limit,),
        name,
        words,
        left_out,
    )


def build_model(recipe: Recipe, config: PretrainedConfig) -> tuple[LanguageModel, int, int, QuantisedBytes]:
    """(the recipe's model on the meta device with what it trains made trainable, and of it before that its bytes and
    its number of parameters; what quantize changes)."""
    dtype = getattr(torch, recipe.dtype.model)
    with torch.device("meta"):
        auto = auto_class_of(config) or AutoModelForCausalLM
        model: LanguageModel = auto.from_config(reading_part(config), dtype=dtype).eval()
        parameters, frozen = sum(p.numel() for p in model.parameters()), _bytes(model)
        few = QuantisedBytes()
        if recipe.quantize is not None:  # below its adapters, each layer's weights are needed in a backward pass
            few = quantised_bytes(model, recipe.quantize, set(map(storage_of, model.parameters())), head="lm_head")
        if recipe.lora is not None:
            adapters.add_lora({"model": model}, **recipe.lora.options)
            if adapters_as_model(recipe, device_type(recipe.device)):
                compute_as_inputs({"model": model})
            if recipe.roles is not None:
                add_roles({"model": model}, recipe.roles.labels, recipe.seed)
        else:
            adapters.train_full({"model": model})
            freeze({"model": model}, recipe.freeze)
    return model, frozen, parameters, few


class Learning(NamedTuple):
    """Bytes of a critic: all of its weights, those that learn (and their gradients), and what its optimizer keeps."""

    fixed: int = 0
    state: int = 0
    moments: int = 0
    known: bool = True


def _critic(recipe: Recipe) -> Learning:
    """The recipe's critic; nothing without one, not known where no config of its model is at hand."""
    given = recipe.critic
    if given is None:
        return Learning()
    config = config_of(given.path or recipe.model)
    if config is None:
        return Learning(known=False)
    labels = [] if recipe.roles is None else recipe.roles.labels
    with torch.device("meta"):
        auto = auto_class_of(config) or AutoModelForCausalLM
        model: LanguageModel = auto.from_config(reading_part(config), dtype=getattr(torch, recipe.dtype.model)).eval()
        if given.use == "lora":
            adapters.add_lora({"critic": model}, rank=given.rank, alpha=given.rank, targets="all")
            add_roles({"critic": model}, labels, recipe.seed)
        else:
            adapters.train_full({"critic": model})
        heads = [torch.nn.Linear(config.get_text_config().hidden_size, 1) for _ in labels or ("",)]
    learning = [*adapters.trainable({"critic": model}), *(p for head in heads for p in head.parameters())]
    state = sum(p.numel() * p.element_size() for p in learning)
    own = sum(p.numel() * p.element_size() for head in heads for p in head.parameters())
    return Learning(_bytes(model) + own, state, _moments(recipe, learning))


def _moments(recipe: Recipe, learning: Sequence[torch.nn.Parameter]) -> int:
    """Bytes that an optimizer keeps of what learns: two moments, and of float16 weights a copy in float32."""
    number = sum(p.numel() for p in learning)
    if recipe.train.optimizer == "adamw_8bit":
        return 2 * number
    return sum((12 if p.dtype == torch.float16 else 2 * p.element_size()) * p.numel() for p in learning)


def config_of(model: str) -> PretrainedConfig | None:
    """The config of an embedded, random, known or local model, or a GGUF file."""
    if missing_package(model):
        return None
    if (file := gguf_file(model)) is not None:
        return AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    folder = config_place(model)
    return AutoConfig.from_pretrained(str(folder)) if (folder / "config.json").is_file() else None


def _bytes(model: LanguageModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def tokens_of(recipe: Recipe, prompts: Sequence[Prompt]) -> int:
    """Tokens of the longest prompt, from its words or, where it has none to speak of, its characters."""
    said = [" ".join([*(m["content"] for m in p.messages[:-1]), p.text]) for p in prompts]
    return max((max(math.ceil(WORDS * len(text.split())), len(text) // 3) + MARKS for text in said), default=ASSUMED)


def _cache(config: PretrainedConfig, rows: int, length: int, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of so many rows."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * width * rows * length * dtype.itemsize


def _kept(model: LanguageModel, rows: int, length: int, limit: int, precision: torch.dtype) -> int | None:
    """Bytes that autograd keeps of a training forward of so many rows; None where the model's forward needs values."""
    excluded = [*model.parameters(), *model.buffers()]
    total = length + limit - 1
    ids = torch.ones(rows, total, dtype=torch.int64, device="meta")
    mask = torch.ones(rows, 1, total, total, dtype=torch.bool, device="meta")
    try:
        with count_saved(excluded) as saved, FusedAttention(), torch.enable_grad():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -limit:]
            token_logp(logits, ids[:, :limit], 1.0, precision)
            return saved.bytes
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None
