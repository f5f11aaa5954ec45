"""A diffusers pipeline or a language model from a hub id, a local folder, or an embedded world; and its device."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)

from flowrl import names
from flowrl.known.places import is_random, random_folder
from flowrl.names import hint
from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.calls.working_copy import modules_of
from flowrl.policies.quantising import DENOISERS, check_skipped, language_arguments, pipeline_arguments, quantise
from flowrl.policies.random.models import random_language, random_pipeline, random_processor, random_tokenizer
from flowrl.recipe.calls import check_call
from flowrl.recipe.keys.fitting import QuantizeKeys
from flowrl.recipe.models import gguf_file, missing_package
from flowrl.untyped import JSON, Config, LanguageModel, Nest, Network, Pipeline, Processor, Tokenizer

CPU = torch.device("cpu")


def load_pipeline(
    model: str,
    dtype: torch.dtype,
    call: dict[str, Nest] | None = None,
    quantize: QuantizeKeys | None = None,
    denoisers: Sequence[str] | None = None,
    *,
    device: torch.device = CPU,
) -> Pipeline:
    """The pipeline, all components in `dtype` on the CPU, frozen and in evaluation mode. device: where random weights
    are made (`model: random:NAME`).

    quantize: how the denoisers (those named, or the usual ones) are quantised. Raises PolicyError if it cannot be
    loaded, RecipeError if it does not take the arguments of `call`.
    """
    place = _place(model)
    try:
        if is_random(model):
            pipe = random_pipeline(Path(place), dtype, device)
            found = {n: m for n, m in modules_of(pipe).items() if n in (denoisers or DENOISERS)}
            if quantize is not None:
                quantise(found, quantize)
        else:
            how = {} if quantize is None else pipeline_arguments(place, quantize, denoisers, dtype)
            pipe = DiffusionPipeline.from_pretrained(place, dtype=dtype, **how)
    except (OSError, ValueError) as error:
        raise _unloadable(model, "diffusers", error) from error
    if quantize is not None:
        check_skipped({n: m for n, m in modules_of(pipe).items() if n in (denoisers or DENOISERS)}, quantize)
    check_call(type(pipe), call or {})
    pipe.set_progress_bar_config(disable=True)
    for module in modules_of(pipe).values():
        module.requires_grad_(False).eval()
    return pipe


def load_language(
    model: str, dtype: torch.dtype, quantize: QuantizeKeys | None = None
) -> tuple[LanguageModel, Tokenizer]:
    """(model, tokenizer) of a language model, in `dtype` on the CPU, frozen and in evaluation mode.

    Its config decides whether it reads text alone, or pictures and sounds as well (`load_processor`). A model gguf:FILE
    is read by transformers' own reader, its quantised weights as plain ones. Raises PolicyError if they cannot be
    loaded.
    """
    if problem := missing_package(model):
        raise PolicyError(f"model: {'; '.join(problem)}")
    file = gguf_file(model)
    place, how = (_place(model), {}) if file is None else (str(file.parent), {"gguf_file": file.name})
    try:
        auto = AutoModelForCausalLM if file is not None else auto_class(model) or AutoModelForCausalLM
        if is_random(model):
            tokenizer = random_tokenizer(Path(place))
            network = random_language(Path(place), auto, dtype)
            if quantize is not None:
                quantise({"the model": network}, quantize, ["lm_head"])
        else:
            tokenizer = AutoTokenizer.from_pretrained(place, **how)
            if auto is AutoModelForImageTextToText:
                how["config"] = reading_part(AutoConfig.from_pretrained(place))
            more = {} if quantize is None else language_arguments(quantize, dtype)
            network = auto.from_pretrained(place, dtype=dtype, **how, **more)
    except (OSError, ValueError) as error:
        raise _unloadable(model, "transformers", error) from error
    if quantize is not None:
        check_skipped({"the model": network}, quantize)
    return network.requires_grad_(False).eval(), tokenizer


def load_processor(model: str, arguments: Mapping[str, JSON] | None = None) -> Processor | None:
    """What makes tensors of texts, pictures and sounds for a model that reads them; None for a model of text alone.

    arguments: of its parts, in place of what the folder says. Raises PolicyError if it cannot be loaded, and for
    arguments that no part takes.
    """
    if gguf_file(model) is not None or auto_class(model) is None:
        return None
    try:
        made = random_processor(Path(_place(model)), arguments or {}) if is_random(model) else None
        processor = made or AutoProcessor.from_pretrained(_place(model), **(arguments or {}))
    except (OSError, ValueError, ImportError) as error:
        raise _unloadable(model, "transformers", error) from error
    parts = [getattr(processor, name) for name in processor.get_attributes() if name != "tokenizer"]
    taken = [getattr(getattr(part, "valid_kwargs", None), "__annotations__", ()) for part in parts]  # of pictures alone
    known = {name for part, named in zip(parts, taken, strict=True) for name in (*vars(part), *named)}
    if unknown := [name for name in arguments or {} if name not in known]:
        who, meant = type(processor).__name__, hint(unknown[0], known)
        raise PolicyError(f"generation.processor.{unknown[0]}: no part of {who} takes it{meant}; correct or remove it")
    return processor


def auto_class(model: str) -> Network | None:
    """What loads a model that reads more than text, by the class that the config of a folder or hub id names.

    None for any other model.
    """
    try:
        return auto_class_of(AutoConfig.from_pretrained(_place(model)))
    except (OSError, ValueError):
        return None  # loading says it better


def auto_class_of(config: Config) -> Network | None:
    """The same, of a config."""
    named = config.architectures or []
    if reading_part(config) is not config or any(
        name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values() for name in named
    ):
        return AutoModelForImageTextToText
    more = any(name in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.values() for name in named)
    return AutoModelForMultimodalLM if more else None


def reading_part(config: Config) -> Config:
    """The config of the part that reads and writes texts, of a model which has others beside it that speak; or itself.

    Of Qwen2.5-Omni this is the thinker: transformers loads it from the whole.
    """
    reading = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if config.model_type in reading:
        return config
    return next((part for part in vars(config).values() if getattr(part, "model_type", None) in reading), config)


def _place(model: str) -> str:
    """The argument of `from_pretrained`. Raises PolicyError if an embedded model is missing."""
    if is_random(model):
        return str(random_folder(model))
    place = names.MODELS.get(model)
    if place is not None and not place.is_dir():
        world = place.parents[1].name
        raise PolicyError(f"model {model!r} is not in {place}: reinstall flowrl, or run `flowrl world build {world}`")
    return str(place or model)


def _unloadable(model: str, library: str, error: Exception) -> PolicyError:
    reason = " ".join(str(error).split())
    return PolicyError(
        f"model {model!r} cannot be loaded ({type(error).__name__}: {reason[:200]}): give a {library} folder, or a "
        "hub id that this machine can reach (a gated model needs `hf auth login` first)"
    )
