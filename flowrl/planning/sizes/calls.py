"""The arguments that a pipeline's own call takes, if its class is known before it is loaded."""

import json
from pathlib import Path

from flowrl.planning.remembered import look_up
from flowrl.recipe.calls import accepted_by_call, check_call
from flowrl.recipe.models import pipeline_class
from flowrl.untyped import JSON


def check_arguments(model: str, call: dict[str, JSON], section: str = "pipeline") -> None:
    """Compares the recipe's keys of a section with the call of a model whose class its folder names, or that is known.

    Raises RecipeError for a key, or a type of value, that the pipeline does not take. The class of other hub ids is
    known only once they are loaded.
    """
    name = pipeline_class(model)
    if name is not None:
        look_up("call", [name, call], lambda: _check(name, call, section))


def _check(name: str, call: dict[str, JSON], section: str) -> bool:
    kind = _diffusers_class(name)
    if kind is not None:
        check_call(kind, call, section)
    return True


def argument_names(model: str, *, online: bool) -> list[str]:
    """Names of the arguments of a pipeline's call that a recipe or a prompt may give; none while it is not known.

    The class of a hub id is in its index, which is looked up in the local cache of downloads and, online, on the hub.
    """
    name = pipeline_class(model)
    if name is None and "/" in model and not Path(model).expanduser().exists():
        from huggingface_hub import hf_hub_download

        try:
            index = hf_hub_download(model, "model_index.json", local_files_only=not online)
            name = json.loads(Path(index).read_text(encoding="utf-8"))["_class_name"]
        except (OSError, KeyError, TypeError, ValueError):  # no such model, or no way to it: loading it will tell
            return []
    return look_up("arguments", name, lambda: _accepted_names(name)) if isinstance(name, str) else []


def _accepted_names(name: str) -> list[str]:
    kind = _diffusers_class(name)
    return [] if kind is None else list(accepted_by_call(kind) or ())


def _diffusers_class(name: str) -> type | None:
    import diffusers

    return getattr(diffusers, name, None)
