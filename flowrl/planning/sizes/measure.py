"""What the modules of a model tell of its sizes: they are built on the meta device, for which libraries are loaded."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImagePipeline
from transformers import AutoTokenizer

from flowrl import names
from flowrl.planning.sizes.activations import kept
from flowrl.planning.sizes.asked import Asked, Measured
from flowrl.planning.sizes.components import Component, bytes_of, components, number_of
from flowrl.planning.sizes.inputs import BUILDERS, Setting, Step
from flowrl.planning.sizes.known import PIPELINES
from flowrl.policies import adapters
from flowrl.recipe.checks import pipeline_class


def measure(asked: Asked) -> Measured:
    """The sizes of a model whose configs are at hand. Raises PolicyError for a LoRA that does not fit it."""
    known = components(asked.model) or {}
    dtype = getattr(torch, asked.dtype)
    modules = {name: part.built(dtype) for name, part in known.items()}
    parameters = {name: number_of(module) for name, module in modules.items()}
    wanted = asked.lora["modules"] if asked.lora is not None else None
    trained = {n: modules[n] for n in (adapters.DENOISERS if wanted is None else wanted) if n in modules}
    frozen = {name: bytes_of(module) for name, module in modules.items()}
    with torch.device("meta"):
        if asked.lora is not None:
            options = {name: asked.lora[name] for name in ("rank", "alpha", "targets", "init")}
            adapters.add_lora(trained, **options)
        else:
            adapters.train_full(trained)
    learning = list(adapters.trainable(trained))
    pipeline = pipeline_class(asked.model) or PIPELINES[asked.model]
    steps = _steps(asked, known, list(trained), dtype, pipeline)
    found = [kept(trained[name], step.calls) for name, step in steps.items()]
    return Measured(
        parameters=parameters,
        frozen=frozen,
        trained=list(trained),
        learning=sum(p.numel() for p in learning),
        state=sum(p.numel() * p.element_size() for p in learning),
        added=sum(bytes_of(m) - frozen[n] for n, m in trained.items()),
        pipeline=pipeline,
        latent=list(next(iter(steps.values())).latent) if steps else None,
        kept=[[k.whole, k.recomputing, k.block] for k in found],
    )


def _steps(
    asked: Asked, known: dict[str, Component], trained: list[str], dtype: torch.dtype, pipeline: str
) -> dict[str, Step]:
    """By denoiser its calls; none where the shapes of this class of pipeline are not known."""
    builder: Callable[[Setting, dict[str, Any]], Step] | None = BUILDERS.get(pipeline)
    if builder is None:
        return {}
    configs = {name: _with_defaults(part) for name, part in known.items()}
    setting = Setting(asked.rows, asked.pipeline, configs, asked.tokens, dtype, _padded(asked.model))
    return {name: builder(setting, configs[name]) for name in trained}


def _with_defaults(part: Component) -> dict[str, Any]:
    """A config with the values that its class gives to what it leaves out."""
    parameters = inspect.signature(part.kind.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | part.config


def _padded(model: str) -> int:
    """The length that the model's first tokenizer pads to: CLIP's 77 where its folder is not there."""
    config = names.MODELS.get(model, Path(model).expanduser()) / "tokenizer" / "tokenizer_config.json"
    return json.loads(config.read_text(encoding="utf-8"))["model_max_length"] if config.is_file() else 77


def qwen_counter(folder: Path) -> Callable[[str], int]:
    """Counts the tokens of a text within Qwen-Image's template, less those that the pipeline drops."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    bare = dict.fromkeys(("scheduler", "vae", "text_encoder", "transformer"))
    pipe = QwenImagePipeline(**bare, tokenizer=tokenizer)  # pyright: ignore[reportArgumentType]
    template, dropped = pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx
    return lambda text: max(1, len(tokenizer.tokenize(template.format(text))) - dropped)
