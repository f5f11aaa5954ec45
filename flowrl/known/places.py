"""Where a model's configs are: of one that ships, of a local folder, of one made of random weights, or of a known id.

A model `random:NAME` has the sizes of a published one, or of a local folder, and random weights, so that memory and
speed of a recipe can be tried without a download. `random:NAME?blocks=N` cuts every stack of blocks to at most N.
"""

import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from flowrl import names
from flowrl.known.models import IDS, files_of
from flowrl.known.parts import Config
from flowrl.untyped import JSON

RANDOM = "random:"
_SPELLING = re.compile(r"(?P<name>[^?]+)(?:\?blocks=(?P<blocks>[1-9]\d*))?")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".msgpack", ".gguf", ".h5", ".onnx")
# numbers of blocks in a config; those of an autoencoder are left as they are
_STACKS = ("num_layers", "num_single_layers", "num_hidden_layers", "n_layers", "n_refiner_layers", "depth")
_STACKS += ("num_refiner_layers", "video_connector_num_layers", "audio_connector_num_layers")
_OF_BLOCKS = ("dual_attention_layers", "fullatt_block_indexes")  # lists of the blocks that have something


def place_of(model: str) -> Path:
    """The folder of an embedded, random or local model; of any other name a path that is not there."""
    if model in names.MODELS:
        return names.MODELS[model]
    return random_folder(model) if is_random(model) else Path(model).expanduser()


def config_place(model: str) -> Path:
    """The same, and of a hub id that is known here the folder with its configs, without weights."""
    known = model in IDS and not Path(model).expanduser().is_dir()
    return random_folder(RANDOM + model) if known else place_of(model)


def is_random(model: str) -> bool:
    """Whether a model is one of random weights."""
    return model.startswith(RANDOM)


def random_problem(model: str) -> tuple[str, str] | None:
    """(what is wrong, what to do) for a model random:... that names nothing."""
    if not is_random(model):
        return None
    source, blocks = _parsed(model)
    if source is None:
        return "which is not spelled right", "give random:NAME, or random:NAME?blocks=N with N of 1 or more"
    if isinstance(source, Path) and not any((source / name).is_file() for name in ("model_index.json", "config.json")):
        known = sorted({_short(one) for one in IDS} | set(names.MODELS))
        given = str(source)
        return (
            f"but no configs of {given!r} are known",
            f"accepted: {', '.join(known)}, or a local folder" + names.hint(given, known),
        )
    return None


def random_folder(model: str) -> Path:
    """The folder with the configs of a model random:..., without weights: the local folder itself where all blocks are
    kept, else one in flowrl's cache that is written once. A path that is not there if it names nothing."""
    source, blocks = _parsed(model)
    if source is None or (isinstance(source, Path) and (blocks is None or not source.is_dir())):
        return Path(model) if source is None else Path(source)
    files = {} if isinstance(source, Path) else files_of(source)
    if isinstance(source, Path):
        paths = [*source.glob("config.json"), *source.glob("*/config.json")]
        files = {str(p.relative_to(source)): json.loads(p.read_text(encoding="utf-8")) for p in paths}
    return _written(source, {path: cut(config, blocks) for path, config in files.items()})


def cut(config: Config, blocks: int | None) -> Config:
    """A component's config with at most so many blocks in each stack, None for all of them."""
    if blocks is None:
        return config
    text_layers, whole = config.get("text_proj_in_factor"), dict(config)
    for name, value in config.items():
        if isinstance(value, dict) and name.endswith("_config"):
            whole[name] = cut(value, blocks)
        elif name in _STACKS and isinstance(value, int):
            whole[name] = min(value, blocks)
        elif name in _OF_BLOCKS:
            whole[name] = [block for block in value if block < blocks]
        elif name == "transformer_layers_per_block":
            given = config[name]
            whole[name] = [min(number, blocks) for number in given] if isinstance(given, list) else min(given, blocks)
        elif name == "layer_types":
            whole[name] = value[:blocks]
    if isinstance(text_layers, int):  # all hidden states of the text encoder, and its embeddings
        whole["text_proj_in_factor"] = min(text_layers, blocks + 1)
    return whole


def _short(model: str) -> str:
    return model.rpartition("/")[2].removesuffix("-Diffusers")


def _parsed(model: str) -> tuple[str | Path | None, int | None]:
    """(a known hub id, or a folder, None where it is not spelled right; the number of blocks to keep, None for all)."""
    found = _SPELLING.fullmatch(model.removeprefix(RANDOM))
    if found is None:
        return None, None
    name, blocks = found["name"], found["blocks"]
    meant = {_short(one).lower(): one for one in IDS} | {one.lower(): one for one in IDS}
    source = names.MODELS.get(name) or meant.get(name.lower()) or Path(name).expanduser()
    return source, None if blocks is None else int(blocks)


def _written(source: str | Path, files: Mapping[str, Config]) -> Path:
    """The folder in the cache that has these files, and of a local one the others that are no weights."""
    name = str(source.resolve()) if isinstance(source, Path) else source
    text = json.dumps([name, files], sort_keys=True)
    folder = f"{re.sub(r'[^A-Za-z0-9.]+', '-', Path(name).name)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    place = names.cache_folder() / "configs" / folder
    if place.is_dir():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=place.parent))
    except OSError:  # a cache that cannot be written
        return _for_this_process(folder, text, source if isinstance(source, Path) else None)
    _fill(made, files, source if isinstance(source, Path) else None)
    try:
        os.rename(made, place)
    except OSError:  # another process was first
        shutil.rmtree(made)
    return place


@functools.cache
def _for_this_process(folder: str, text: str, source: Path | None) -> Path:
    made = Path(tempfile.mkdtemp(prefix=f"{folder}-"))
    _fill(made, json.loads(text)[1], source)
    return made


def _fill(folder: Path, files: Mapping[str, JSON], source: Path | None) -> None:
    for path in [] if source is None else source.rglob("*"):
        if path.is_file() and path.suffix not in _WEIGHTS and not path.name.endswith(".index.json"):
            target = folder / path.relative_to(source or folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for name, config in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
