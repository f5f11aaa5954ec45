"""What can be read from a model's folder before anything is loaded."""

from pathlib import Path

from flowrl import names
from flowrl.recipe.calls import read_json


def pipeline_class(model: str) -> str | None:
    """Class name in the model_index.json of an embedded or local model; None for a hub id, known only once loaded."""
    return read_json(names.MODELS.get(model, Path(model).expanduser()) / "model_index.json").get("_class_name")


def foreign_model(model: str) -> tuple[str, str] | None:
    """(what it is, what to do) for a path to something that is neither a diffusers pipeline nor a text model."""
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
