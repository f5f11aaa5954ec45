"""All published models whose configs are known here, by hub id, and the files that a folder of each would have."""

from functools import cache

from flowrl.known.images import IMAGES
from flowrl.known.language import LANGUAGE
from flowrl.known.parts import Config, Known
from flowrl.known.videos import VIDEOS

PIPELINES: dict[str, Known] = IMAGES | VIDEOS
IDS = (*PIPELINES, *LANGUAGE)
_ELSEWHERE = {"LTX2TextConnectors": "ltx2", "LTX2Vocoder": "ltx2"}  # classes in a folder of diffusers' pipelines


@cache
def files_of(model: str) -> dict[str, Config]:
    """What the JSON files of a known model's folder say, by their paths in it; without weights and tokenizers."""
    if model in LANGUAGE:
        config = LANGUAGE[model]
        return {"config.json": config} | ({"preprocessor_config.json": {}} if "vision_config" in config else {})
    known = PIPELINES[model]
    index: Config = {"_class_name": known.pipeline, "scheduler": ["diffusers", known.scheduler[0]], **known.settings}
    files: dict[str, Config] = {}
    for name, (kind, config) in known.parts.items():
        ours = "model_type" not in config
        index[name] = [_ELSEWHERE.get(kind, "diffusers" if ours else "transformers"), kind]
        files[f"{name}/config.json"] = config | ({"_class_name": kind} if ours else {"architectures": [kind]})
    for name, kind in known.tokenizers.items():
        index[name] = ["transformers", kind]
    kind, config = known.scheduler
    return {"model_index.json": index, "scheduler/scheduler_config.json": {"_class_name": kind, **config}, **files}
