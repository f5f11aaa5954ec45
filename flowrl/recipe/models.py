"""What can be read from a model's folder before anything is loaded."""

from importlib.util import find_spec
from pathlib import Path

from flowrl.known.places import config_place
from flowrl.recipe.calls import read_json

# of these a folder of a model that reads more than text has at least one
PROCESSORS = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
GGUF = "gguf:"  # a language model in one quantised file, which is read into plain weights


def gguf_file(model: str) -> Path | None:
    """The file of a model gguf:FILE, or gguf:PACKAGE, an installed package that holds one such file; else None."""
    if not model.startswith(GGUF):
        return None
    name = model.removeprefix(GGUF)
    path = Path(name).expanduser()
    if path.is_file() or not name.isidentifier():
        return path
    spec = find_spec(name)
    files = (
        [file for place in (spec.submodule_search_locations or []) for file in Path(place).glob("*.gguf")]
        if spec
        else []
    )
    return files[0] if len(files) == 1 else path


def missing_package(model: str) -> tuple[str, str] | None:
    """(what is wrong, what to do) for a model gguf:PACKAGE of a package that is not installed: a plan does without."""
    name = model.removeprefix(GGUF)
    if not model.startswith(GGUF) or not name.isidentifier() or Path(name).is_file() or find_spec(name) is not None:
        return None
    remedy = f"pip install {name.replace('_', '-')}, if that is its name there, or give a file"
    return f"got {model!r}, but no such package is installed", remedy


def gguf_problem(model: str) -> tuple[str, str] | None:
    """(what is wrong, what to do) for a model gguf:... that cannot be read; a package may still be installed."""
    file = gguf_file(model)
    if file is None or missing_package(model):
        return None
    if not file.is_file():
        return f"but {str(file)!r} is neither a file nor an installed package with one .gguf file", "correct the path"
    if find_spec("gguf") is None:
        return "which needs the package gguf", 'pip install "flowrl-toolkit[gguf]"'
    return None


def pipeline_class(model: str) -> str | None:
    """Class name in a pipeline's model_index.json; None for a hub id that is not known here, only once loaded."""
    return read_json(config_place(model) / "model_index.json").get("_class_name")


def reads_media(model: str) -> bool | None:
    """Whether a model has a processor of pictures or sounds; None for a hub id that is not known here."""
    if gguf_file(model) is not None:
        return False
    folder = config_place(model)
    return any((folder / name).is_file() for name in PROCESSORS) if folder.is_dir() else None


def foreign_model(model: str) -> tuple[str, str] | None:
    """(what it is, what to do) for a path to something that is neither a diffusers pipeline nor a text model."""
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix == ".gguf":
            return "a GGUF file", f"give a language model's as {GGUF}{model}, a pipeline as its diffusers folder"
        remedy = "write a folder of it: diffusers' Pipeline.from_single_file(FILE).save_pretrained(FOLDER); give FOLDER"
        return "a single file without a model's configs", remedy
    config = read_json(path / "config.json")
    seeing = any(key in config for key in ("vision_config", "audio_config"))
    if seeing and not (path / "model_index.json").is_file() and not reads_media(model):
        kind = f"a model of pictures or sound and text ({config.get('model_type')}) without its processor"
        return (
            kind,
            f"save it beside the weights: transformers' AutoProcessor.from_pretrained(ID).save_pretrained({path})",
        )
    if path.is_dir() and not config and any(path.glob("*.gguf")):
        return "a folder of GGUF files, quantised for inference", "give the hub id or folder they were made from"
    return None
