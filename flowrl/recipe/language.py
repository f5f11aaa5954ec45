"""What a recipe with `generation` may say: its decisions are tokens, and nothing of it is denoised."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowrl import names
from flowrl.recipe.calls import read_json
from flowrl.recipe.errors import RecipeError, show
from flowrl.recipe.schema import Recipe

DENOISING = ("pipeline", "sampler")  # sections that a language recipe may not have


def refuse_denoising(values: dict[str, Any]) -> None:
    """Raises RecipeError where a recipe's values have both `generation` and a section of denoising models."""
    for name in DENOISING if values.get("generation") is not None else ():
        if values.get(name):
            problem = f"got {show(values[name])}, but `generation` makes this a language model's recipe"
            raise RecipeError(name, problem, f"remove {name}, or set generation=null")


def kind_of(model: str) -> str | None:
    """ "language" or "pipeline" of an embedded or local model's folder; None for a hub id, known only once loaded."""
    folder = names.MODELS.get(model, Path(model).expanduser())
    if (folder / "model_index.json").is_file():
        return "pipeline"
    config = folder / "config.json"
    try:
        causal = "architectures" in json.loads(config.read_text(encoding="utf-8")) if config.is_file() else False
    except ValueError:
        causal = False
    return "language" if causal else None


def stranger(model: str) -> tuple[str, str] | None:
    """(what it is, what to do) of a path to something that is neither a diffusers nor a transformers text model."""
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix == ".gguf":
            return "a GGUF file, quantised for inference", "give the hub id or transformers folder it was made from"
        remedy = "write a folder of it: diffusers' Pipeline.from_single_file(FILE).save_pretrained(FOLDER); give FOLDER"
        return "a single file without a model's configs", remedy
    config = read_json(path / "config.json")
    if not (path / "model_index.json").is_file() and any(key in config for key in ("vision_config", "audio_config")):
        return f"a model of pictures or sound and text ({config.get('model_type')})", "give a text-only language model"
    if path.is_dir() and not config and any(path.glob("*.gguf")):
        return "a folder of GGUF files, quantised for inference", "give the hub id or folder they were made from"
    return None


def check_kind(recipe: Recipe) -> Iterator[RecipeError]:
    """What does not fit between the model, `generation`, and keys that only one kind of model reads."""
    kind, got = kind_of(recipe.model), f"got {recipe.model!r}"
    if recipe.generation is None:
        if kind == "language":
            remedy = "add generation={max_new_tokens: NUMBER}"
            yield RecipeError("model", f"{got}, a language model, but nothing says how it generates", remedy)
        if recipe.eval.temperature is not None:
            problem = f"got {recipe.eval.temperature:g}, but only a language model has one"
            yield RecipeError("eval.temperature", problem, "set eval.temperature=null")
        return
    if kind == "pipeline":
        remedy = "give a transformers folder or a hub id, or remove generation"
        yield RecipeError("model", f"{got}, a diffusers pipeline, but generation is for a language model", remedy)
    if recipe.eval.steps is not None:
        problem = f"got {recipe.eval.steps}, but a language model has no denoising steps"
        yield RecipeError("eval.steps", problem, "set eval.steps=null")
    if recipe.lora is not None and recipe.lora.modules is not None:
        problem = f"got {show(recipe.lora.modules)}, but a language model is one module"
        yield RecipeError("lora.modules", problem, "set lora.modules=null")
    if recipe.offload:
        yield RecipeError("offload", "got true, but a language model is used all the time", "set offload=false")
    if recipe.generation.system is not None and recipe.generation.chat_template is False:
        problem = "given, but generation.chat_template is false, so there is no chat that it could go into"
        yield RecipeError("generation.system", problem, "remove it, or set generation.chat_template=auto")
