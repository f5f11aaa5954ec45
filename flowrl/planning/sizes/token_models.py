"""A language model's recipe on the meta device: the model with what it trains, its critic, and their bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from flowrl.known.places import config_place
from flowrl.planning.sizes.few_bits import quantised_bytes
from flowrl.planning.sizes.quantised import QuantisedBytes
from flowrl.planning.sizes.saved import storage_of
from flowrl.policies import adapters
from flowrl.policies.computing import compute_as_inputs
from flowrl.policies.devices import device_type
from flowrl.policies.loading import auto_class_of, reading_part
from flowrl.policies.roles import add_roles
from flowrl.policies.trainable import freeze
from flowrl.recipe.checks.computing import adapters_as_model
from flowrl.recipe.models import gguf_file, missing_package
from flowrl.recipe.schema import Recipe
from flowrl.untyped import LanguageModel


def build_model(recipe: Recipe, config: PretrainedConfig) -> tuple[LanguageModel, int, int, QuantisedBytes]:
    """(the recipe's model on the meta device with what it trains made trainable, and of it before that its bytes and
    its number of parameters; what quantize changes)."""
    dtype = getattr(torch, recipe.dtype.model)
    model = build_frozen(config, dtype)
    with torch.device("meta"):
        parameters, frozen = sum(p.numel() for p in model.parameters()), bytes_of(model)
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


def critic(recipe: Recipe) -> Learning:
    """The recipe's critic; nothing without one, not known where no config of its model is at hand."""
    given = recipe.critic
    if given is None:
        return Learning()
    config = config_of(given.path or recipe.model)
    if config is None:
        return Learning(known=False)
    model, heads = build_critic(recipe, config)
    learning = [*adapters.trainable({"critic": model}), *(p for head in heads for p in head.parameters())]
    state = sum(p.numel() * p.element_size() for p in learning)
    own = sum(p.numel() * p.element_size() for head in heads for p in head.parameters())
    return Learning(bytes_of(model) + own, state, moments(recipe, learning))


def build_critic(recipe: Recipe, config: PretrainedConfig) -> tuple[LanguageModel, list[torch.nn.Linear]]:
    """(the model of the recipe's critic on the meta device with what it trains made trainable, its heads)."""
    given = recipe.critic
    assert given is not None
    labels = [] if recipe.roles is None else recipe.roles.labels
    model = build_frozen(config, getattr(torch, recipe.dtype.model))
    with torch.device("meta"):
        if given.use == "lora":
            adapters.add_lora({"critic": model}, rank=given.rank, alpha=given.rank, targets="all")
            add_roles({"critic": model}, labels, recipe.seed)
        else:
            adapters.train_full({"critic": model})
        heads = [torch.nn.Linear(config.get_text_config().hidden_size, 1) for _ in labels or ("",)]
    return model, heads


def reference_bytes(recipe: Recipe) -> int | None:
    """Bytes of the weights of another model, or other adapters, that are the reference; 0 where it is neither, None
    where they are not known."""
    total = 0
    for path, use in [(one.path, one.use) for one in recipe.references if one.path is not None]:
        if use == "lora":
            size = sum(file.stat().st_size for file in Path(path).expanduser().glob("**/*.safetensors"))
        else:
            config = config_of(path)
            size = 0 if config is None else bytes_of(build_frozen(config, getattr(torch, recipe.dtype.model)))
        if not size:
            return None
        total += size
    return total


def build_frozen(config: PretrainedConfig, dtype: torch.dtype) -> LanguageModel:
    """A model on the meta device that learns nothing."""
    with torch.device("meta"):
        auto = auto_class_of(config) or AutoModelForCausalLM
        model: LanguageModel = auto.from_config(reading_part(config), dtype=dtype).eval()
    return model.requires_grad_(False)


def moments(recipe: Recipe, learning: Sequence[torch.nn.Parameter]) -> int:
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


def bytes_of(model: LanguageModel) -> int:
    """Bytes of a model's parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters())
