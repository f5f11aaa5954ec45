"""The sizes of a model, measured on its modules: they are built on the meta device, which loads the big libraries."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImagePipeline
from transformers import AutoTokenizer

from flowrl.known.places import place_of
from flowrl.planning.sizes.activations import measure_activations
from flowrl.planning.sizes.components import Component, components, num_parameters, parameter_bytes
from flowrl.planning.sizes.inputs import BUILDERS, CallSetting, DenoiserCalls
from flowrl.planning.sizes.live import peak_live
from flowrl.planning.sizes.query import MeasuredSizes, SizeQuery
from flowrl.policies import adapters
from flowrl.policies.blocks import repeated_blocks
from flowrl.policies.merging import touched_bytes
from flowrl.recipe.models import pipeline_class
from flowrl.untyped import JSON, Network, Tokenizer


def measure(query: SizeQuery) -> MeasuredSizes:
    """The sizes of a model whose configs are available. Raises PolicyError for a LoRA that does not fit it."""
    known = components(query.model) or {}
    dtype = getattr(torch, query.dtype)
    modules = {name: part.build(dtype) for name, part in known.items()}
    parameters = {name: num_parameters(module) for name, module in modules.items()}
    trained = _trained(query, modules)
    frozen = {name: parameter_bytes(module) for name, module in modules.items()}
    _make_trainable(query, trained)
    learning = list(adapters.trainable(trained))
    pipeline = pipeline_class(query.model)
    steps = _steps(query, known, list(trained), dtype, pipeline)
    activations = [measure_activations(trained[name], step.calls) for name, step in steps.items()]
    return MeasuredSizes(
        parameters=parameters,
        frozen=frozen,
        trained=list(trained),
        learning=sum(p.numel() for p in learning),
        state=sum(p.numel() * p.element_size() for p in learning),
        added=sum(parameter_bytes(m) - frozen[n] for n, m in trained.items()),
        pipeline=pipeline,
        latent=list(next(iter(steps.values())).latent) if steps else None,
        kept=[[k.whole, k.recomputing, k.block] for k in activations],
    )


def measure_merged(query: SizeQuery) -> int:
    """Bytes of the weights that a LoRA touches: what merged ones take beside them."""
    known = components(query.model) or {}
    names = _trained(query, known)
    trained = {name: part.build(getattr(torch, query.dtype)) for name, part in names.items()}
    _make_trainable(query, trained)
    return touched_bytes(trained)


def _trained(query: SizeQuery, parts: dict[str, Any]) -> dict[str, Any]:
    """Those of the components that learn."""
    wanted = query.lora["modules"] if query.lora is not None else None
    return {n: parts[n] for n in (adapters.DENOISERS if wanted is None else wanted) if n in parts}


def _make_trainable(query: SizeQuery, trained: dict[str, Network]) -> None:
    with torch.device("meta"):
        if query.lora is not None:
            options = {name: value for name, value in query.lora.items() if name != "modules"}
            adapters.add_lora(trained, **options)
        else:
            adapters.train_full(trained)


def measure_decoding(query: SizeQuery, *, tiling: bool) -> int | None:
    """Bytes that decoding one sample makes at most at once, in query.dtype; None where its shapes are not known."""
    known = components(query.model) or {}
    builder, configs = BUILDERS.get(pipeline_class(query.model) or ""), {n: _with_defaults(c) for n, c in known.items()}
    if builder is None or "vae" not in known:
        return None
    dtype = getattr(torch, query.dtype)
    setting = CallSetting(1, query.pipeline, configs, query.tokens, dtype, _padded_length(query.model))
    shape = builder(setting, configs[next(name for name in adapters.DENOISERS if name in known)]).decoded
    vae: Network = known["vae"].build(dtype)
    if tiling:
        vae.enable_tiling()
    latent = setting.empty(1, *shape)
    return peak_live(lambda: vae.decode(latent, return_dict=False))


def measure_blocks(query: SizeQuery, trained: list[str]) -> list[list[int]]:
    """Bytes of all repeated blocks of each denoiser, and of its largest, before anything is added to them."""
    known, found = components(query.model) or {}, []
    for name in trained:
        blocks = [parameter_bytes(one) for one in repeated_blocks(known[name].build(getattr(torch, query.dtype)))]
        found.append([sum(blocks), max(blocks, default=0)])
    return found


def _steps(
    query: SizeQuery, known: dict[str, Component], trained: list[str], dtype: torch.dtype, pipeline: str
) -> dict[str, DenoiserCalls]:
    """The calls of each denoiser; none if the shapes of this class of pipeline are not known."""
    builder: Callable[[CallSetting, dict[str, JSON]], DenoiserCalls] | None = BUILDERS.get(pipeline)
    if builder is None:
        return {}
    configs = {name: _with_defaults(part) for name, part in known.items()}
    setting = CallSetting(query.rows, query.pipeline, configs, query.tokens, dtype, _padded_length(query.model))
    return {name: builder(setting, configs[name]) for name in trained}


def _with_defaults(part: Component) -> dict[str, JSON]:
    """A config completed with the defaults of its class."""
    parameters = inspect.signature(part.kind.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | part.config


def _padded_length(model: str) -> int:
    """The length that the model's first tokenizer pads to: CLIP's 77 without its folder."""
    config = place_of(model) / "tokenizer" / "tokenizer_config.json"
    return json.loads(config.read_text(encoding="utf-8"))["model_max_length"] if config.is_file() else 77


def qwen_counter(folder: Path) -> Callable[[str], int]:
    """Counts the tokens of a text in Qwen-Image's template, without those that the pipeline drops."""
    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(folder)
    bare = dict.fromkeys(("scheduler", "vae", "text_encoder", "transformer"))
    pipe = QwenImagePipeline(**bare, tokenizer=tokenizer)  # pyright: ignore[reportArgumentType]
    template, dropped = pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx
    return lambda text: max(1, len(tokenizer.tokenize(template.format(text))) - dropped)
