"""Pipelines and language models of random weights, from the configs in a folder that has no weights."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from flowrl.policies.random import tokenizers
from flowrl.policies.random.weights import fill
from flowrl.untyped import JSON, LanguageModel, Network, Pipeline, Processor, Tokenizer


def random_pipeline(folder: Path, dtype: torch.dtype, device: torch.device) -> Pipeline:
    """The pipeline of a folder's configs on the CPU, its weights made on `device`, with tokenizers of our own where the
    folder has none. Raises ValueError for a component that is neither known here nor in the folder."""
    return assemble(folder, lambda name, kind, config: fill(partial(_built, kind, config), dtype, device))


def assemble(folder: Path, weighted: Callable[[str, Any, Mapping[str, JSON]], Network]) -> Pipeline:
    """The pipeline of a folder's configs, whose components with weights are what `weighted` makes of their name, class
    and config. Raises ValueError like `random_pipeline`."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts: dict[str, Any] = {}
    for name, value in index.items():
        if not name.startswith("_"):
            named = isinstance(value, list) and len(value) == 2
            parts[name] = _component(folder / name, value[0], value[1], weighted) if named else value
    return getattr(diffusers, index["_class_name"])(**parts)


def _component(folder: Path, library: str | None, kind: str | None, weighted: Callable[..., Network]) -> Any:
    if library is None or kind is None:
        return None
    found = getattr(diffusers, kind, None) or getattr(transformers, kind, None)
    found = found or getattr(getattr(diffusers.pipelines, library, None), kind, None)
    if found is None:
        raise ValueError(f"{folder.name}: neither diffusers nor transformers has a {kind}")
    if (folder / "config.json").is_file():
        return weighted(folder.name, found, json.loads((folder / "config.json").read_text(encoding="utf-8")))
    if (folder / "scheduler_config.json").is_file():
        return found.from_config(json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8")))
    if folder.is_dir():
        return found.from_pretrained(folder)
    if kind == "Qwen2VLProcessor":
        return tokenizers.qwen_vl_processor()
    if kind == "CLIPImageProcessor":
        return found()
    made = tokenizers.TOKENIZERS.get(kind.removesuffix("Fast"))
    if made is None:
        raise ValueError(f"{folder.name}: the folder has no {kind}, and none is made here")
    return made()


def _built(kind: Any, config: Mapping[str, JSON]) -> Network:
    if not issubclass(kind, transformers.PreTrainedModel):
        return kind.from_config(dict(config))
    given = {name: value for name, value in config.items() if name != "model_type"}
    return kind._from_config(transformers.AutoConfig.for_model(config["model_type"], **given))


def random_language(folder: Path, kind: Network, dtype: torch.dtype) -> LanguageModel:
    """The language model of a folder's config. kind: the class that loads it."""
    config = transformers.AutoConfig.from_pretrained(folder)
    network = fill(partial(kind.from_config, config), dtype, torch.device("cpu"))
    network.config.name_or_path = str(folder)
    return network


def random_tokenizer(folder: Path) -> Tokenizer:
    """The folder's own tokenizer; one with the control tokens of Qwen where it has none."""
    if any(folder.glob("tokenizer*")):
        return transformers.AutoTokenizer.from_pretrained(folder)
    return tokenizers.TOKENIZERS["Qwen2Tokenizer"]()


def random_processor(folder: Path, arguments: Mapping[str, JSON]) -> Processor | None:
    """What makes tensors of pictures for a folder without a tokenizer; None where the folder has its own."""
    return None if any(folder.glob("tokenizer*")) else tokenizers.qwen_vl_processor(**arguments)
