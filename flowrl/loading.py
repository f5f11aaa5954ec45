"""A diffusers pipeline or a language model from a hub id, a local folder, or an embedded world; and its device."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from transformers import AutoModelForCausalLM, AutoTokenizer

from flowrl import names
from flowrl.policies.dressing import modules_of
from flowrl.policies.errors import PolicyError
from flowrl.recipe.checks import accepted_by_call, check_call, pipeline_class
from flowrl.sizes.known import PIPELINES


def load_pipeline(model: str, dtype: torch.dtype, call: dict[str, Any] | None = None) -> Any:
    """The pipeline, all components in `dtype` on the CPU, frozen and in evaluation mode.

    Raises PolicyError where it cannot be had, RecipeError where it does not take the arguments of `call`.
    """
    place = _place(model)
    try:
        pipe = DiffusionPipeline.from_pretrained(place, dtype=dtype)
    except (OSError, ValueError) as error:
        raise _unloadable(model, "diffusers", error) from error
    check_call(type(pipe), call or {})
    pipe.set_progress_bar_config(disable=True)
    for module in modules_of(pipe).values():
        module.requires_grad_(False).eval()
    return pipe


def load_language(model: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """(model, tokenizer) of a causal language model, in `dtype` on the CPU, frozen and in evaluation mode.

    Raises PolicyError where they cannot be had.
    """
    place = _place(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
        network = AutoModelForCausalLM.from_pretrained(place, dtype=dtype)
    except (OSError, ValueError) as error:
        raise _unloadable(model, "transformers", error) from error
    return network.requires_grad_(False).eval(), tokenizer


def _place(model: str) -> str:
    """What `from_pretrained` is given. Raises PolicyError where an embedded model is missing."""
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


def check_arguments(model: str, call: dict[str, Any]) -> None:
    """Compares the recipe's `pipeline` keys with the call of a model whose class its folder names, or that is known.

    Raises RecipeError for a key, or a type of value, that the pipeline does not take. Other hub ids tell their class
    only once they are loaded.
    """
    name = pipeline_class(model) or PIPELINES.get(model)
    kind = None if name is None else getattr(diffusers, name, None)
    if kind is not None:
        check_call(kind, call)


def argument_names(model: str, *, online: bool) -> list[str]:
    """Names of the arguments of a pipeline's call that a recipe or a prompt may give; none where it is not known yet.

    A hub id tells its class in its index, which is looked for where downloads are kept and, online, on the hub.
    """
    name = pipeline_class(model)
    if name is None and "/" in model and not Path(model).expanduser().exists():
        try:
            index = hf_hub_download(model, "model_index.json", local_files_only=not online)
            name = json.loads(Path(index).read_text(encoding="utf-8"))["_class_name"]
        except (OSError, KeyError, TypeError, ValueError):  # no such model, or no way to it: loading it will tell
            return []
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    return [] if kind is None else list(accepted_by_call(kind) or ())


def device_of(name: str, place: str = "device") -> torch.device:
    """The device of a recipe: "auto" is the first of cuda, mps and cpu that is there.

    Raises PolicyError, which names the recipe's key `place`, for a device that is not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = {"cuda": gpus, "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if name == "auto":
        return torch.device(next(kind for kind, number in there.items() if number))
    device = torch.device(name)
    if (device.index or 0) >= there[device.type]:
        listed = [*(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))]
        listed += [kind for kind in ("mps", "cpu") if there[kind]]
        raise PolicyError(f"{place}: {name} is not on this machine; accepted here: auto, {', '.join(listed)}")
    return device
