"""The trained part of a model: LoRA adapters through peft, or its own weights; for denoisers and language models."""

import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.calls.working_copy import modules_of
from flowrl.policies.quantising import is_quantised
from flowrl.policies.submodules import submodules
from flowrl.untyped import JSON, LanguageModel, Network, Pipeline

DENOISERS = ("transformer", "transformer_2", "unet")  # components that are trained if a recipe names none
ADAPTER = "default"
USUAL_RANKS = 256  # LoRA's ranks in published recipes end here
PEFT_PREFIX = "base_model.model."  # of every key in peft's files
Modules = Mapping[
    str, Network
]  # by component name: modules with the adapter methods that diffusers and transformers share
# a UNet's `attentions` hold whole blocks, feed-forward layers too
_ATTENTION = re.compile(r"attn|attention(?!s\.)", re.IGNORECASE)


def denoisers(pipe: Pipeline, names: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """The pipeline's denoisers by component name: those named, or all with a usual name.

    Raises PolicyError if a named component is missing or none is found.
    """
    modules = modules_of(pipe)
    if names is None:
        usual = {n: modules[n] for n in DENOISERS if n in modules}
        if not usual:
            raise PolicyError(
                f"{type(pipe).__name__} has no component named {', '.join(DENOISERS)}; its modules are "
                f"{', '.join(modules) or 'none'}: wrap the inner pipeline, or name the denoiser in lora.modules"
            )
        return usual
    missing = [n for n in names if n not in modules]
    if missing:
        raise PolicyError(f"{type(pipe).__name__} has no module {missing[0]!r}; it has {', '.join(modules)}")
    return {n: modules[n] for n in names}


def add_lora(
    modules: Modules,
    *,
    rank: int,
    alpha: float,
    targets: str | Sequence[str] = "attention",
    init: str = "default",
    rslora: bool = False,
    dora: bool = False,
    seed: int = 0,
) -> None:
    """Adds a float32 LoRA adapter to each module and freezes everything else. Its output is unchanged at first.

    targets: "attention" (every linear layer inside an attention block), "all" (every linear layer of the blocks),
    "match:" and a regular expression for whole names of linear layers, or names as peft matches them. init: "default"
    (Kaiming uniform) or "gaussian", of the inner factor; the outer one starts at zero. rslora, dora: peft.LoraConfig's
    use_rslora and use_dora. Raises PolicyError if nothing matches, and for a rank beyond the widest layer.
    """
    for name, module in modules.items():
        module.requires_grad_(False)
        layers = _linear_layers(module, targets) if isinstance(targets, str) else list(targets)
        unknown = [] if isinstance(targets, str) else _without_layer(module, layers)
        if unknown:  # peft takes a list that matches in part
            raise PolicyError(f"lora.targets: {unknown[0]!r} matches no layer of {name} ({type(module).__name__})")
        if not layers:
            raise PolicyError(f"lora.targets={targets!r} matches no linear layer of {name} ({type(module).__name__})")
        _check_rank(rank, name, module, layers)
        options: dict[str, JSON] = {"lora_alpha": alpha, "init_lora_weights": True if init == "default" else init}
        options |= {"use_rslora": rslora, "use_dora": dora}
        if _is_language_model(module):  # so that peft returns a model that generates
            options |= {"task_type": "CAUSAL_LM", "base_model_name_or_path": module.name_or_path}
        config = LoraConfig(r=rank, target_modules=layers, **options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                _inject(module, config)
            except ValueError as error:  # peft's, where a name matches no layer or one that cannot be adapted
                raise PolicyError(
                    f"lora.targets={targets!r} do not fit {name} ({type(module).__name__}): {error}"
                ) from error
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # Adam's steps are lost in a half-precision weight


def _check_rank(rank: int, name: str, module: nn.Module, layers: Sequence[str]) -> None:
    """Raises PolicyError for a rank above every layer's width: memory that no layer can use.

    The usual ranks pass on models of any size.
    """
    ends = tuple(f".{layer}" for layer in layers)
    linear = {n: layer for n, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    widths = [max(x.in_features, x.out_features) for n, x in linear.items() if f".{n}".endswith(ends)]
    if widths and rank > (limit := max(USUAL_RANKS, *widths)):
        widest = f"the widest layer that is adapted in {name} has {max(widths)} features"
        raise PolicyError(f"lora.rank: got {rank}, accepted: at most {limit}; {widest}")


def _inject(module: Network, config: LoraConfig) -> None:
    if not _is_language_model(module):
        if not hasattr(module, "add_adapter"):
            raise PolicyError(
                f"lora: diffusers takes no adapters for {type(module).__name__}; train all weights, with full: true in "
                "place of lora"
            )
        module.add_adapter(config, adapter_name=ADAPTER)
        return
    # transformers' own add_adapter does this, and refuses releases of peft that are not the newest
    inject_adapter_in_model(config, module, ADAPTER)
    module._hf_peft_config_loaded = True


def _is_language_model(module: Network) -> bool:
    return hasattr(module, "can_generate")


def train_full(modules: Modules) -> None:
    """Makes every weight of the modules trainable."""
    for module in modules.values():
        module.requires_grad_(True)


def trainable(modules: Modules) -> Iterator[nn.Parameter]:
    """The parameters that learn, in a fixed order."""
    yield from trainable_by_name(modules).values()


def adapted_layers(module: Network) -> list[BaseTunerLayer]:
    """The layers of a module that adapters stand beside."""
    return tuner_layers(submodules(module))


def tuner_layers(parts: Sequence[nn.Module]) -> list[Any]:
    """Those of some modules that are peft's layers with adapters."""
    kinds = {kind for kind in set(map(type, parts)) if issubclass(kind, BaseTunerLayer)}  # an ABC is slow to ask
    return [part for part in parts if type(part) in kinds]


def trainable_by_name(modules: Modules) -> dict[str, nn.Parameter]:
    """The parameters that learn by name: component and parameter."""
    parameters = ((c, n, p) for c, module in modules.items() for n, p in module.named_parameters())
    return {f"{component}.{name}": p for component, name, p in parameters if p.requires_grad}


@contextlib.contextmanager
def disable_adapters(modules: Modules) -> Iterator[None]:
    """Within, the modules are the reference: their adapters are off. Raises PolicyError if there are none."""
    bare = [name for name, module in modules.items() if not getattr(module, "_hf_peft_config_loaded", False)]
    if bare:
        raise PolicyError(
            f"{bare[0]} has no LoRA adapter to disable: the reference of full weights is a copy of them, which is kept "
            "where a divergence is asked for"
        )
    layers = [layer for module in modules.values() for layer in adapted_layers(module)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def save(pipe: Pipeline | LanguageModel, modules: Modules, folder: Path) -> None:
    """Writes what was trained: LoRA as `pipe.load_lora_weights(folder)` reads it, full weights as diffusers models.

    A language model writes itself: LoRA for `peft.PeftModel.from_pretrained(base, folder)`, or a transformers folder.

    A second denoiser that the pipeline's own writer has no place for (Wan 2.2) gets a folder of its own, to be loaded
    by `pipe.load_lora_weights(folder / "transformer_2", load_into_transformer_2=True)`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(pipe, "save_weights"):
        pipe.save_weights(folder)
        return
    if not all(getattr(m, "_hf_peft_config_loaded", False) for m in modules.values()):
        for name, module in modules.items():
            module.save_pretrained(folder / name)
        return
    writer = getattr(type(pipe), "save_lora_weights", None)
    if writer is None:  # a pipeline without a LoRA loader of its own: one file a module, for module.load_lora_adapter
        for name, module in modules.items():
            module.save_lora_adapter(folder / name, adapter_name=ADAPTER)
        return
    given: dict[Path, dict[str, object]] = {}
    for name, module in modules.items():
        has_place = f"{name}_lora_layers" in inspect.signature(writer).parameters
        of_folder = given.setdefault(folder if has_place else folder / name, {})
        name = name if has_place else DENOISERS[0]
        of_folder[f"{name}_lora_layers"] = get_peft_model_state_dict(module, adapter_name=ADAPTER)
        of_folder[f"{name}_lora_adapter_metadata"] = _metadata(module)
    for place, layers in given.items():
        writer(place, **layers)


def save_peft(module: Network, folder: Path, adapter: str = ADAPTER) -> None:
    """Writes a module's adapter for `peft.PeftModel.from_pretrained(base, folder)`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(module, adapter_name=adapter, save_embedding_layers=False)  # they are not adapted
    state = {f"{PEFT_PREFIX}{key}": value.contiguous().cpu() for key, value in state.items()}
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    module.peft_config[adapter].save_pretrained(str(folder))


def other_adapters(module: Network) -> list[str]:
    """The names of a module's adapters that learn beside the first, those of further roles."""
    trained = [name.split(".") for name, parameter in module.named_parameters() if parameter.requires_grad]
    return [name for name in module.peft_config if name != ADAPTER and any(name in parts for parts in trained)]


def fuse(modules: Modules) -> None:
    """Merges the adapters into the weights in place and removes them: plain modules remain.

    W + alpha / rank * B A is rounded once, to W's dtype. Modules without adapters stay as they are.

    Raises PolicyError for quantised modules.
    """
    for name, module in modules.items():
        if is_quantised(module):
            raise PolicyError(
                f"{name} is quantised: merged adapters would be rounded to its few bits, which are coarser than "
                "what was learnt; export lora, whose base may be quantised or not"
            )
        if getattr(module, "_hf_peft_config_loaded", False):
            module.fuse_lora(adapter_names=[ADAPTER])
            module.unload_lora()


def restore(pipe: Pipeline, modules: Modules, folder: Path) -> None:
    """Loads what `save` wrote into the modules. Raises PolicyError if the folder holds something else."""
    for name, module in modules.items():
        is_lora = getattr(module, "_hf_peft_config_loaded", False)
        state = lora_state(folder, name) if is_lora else _full_state(folder, name, type(module))
        if is_lora:
            for other in other_adapters(module):
                set_peft_model_state_dict(module, lora_state(folder / other, name), adapter_name=other)
            result = set_peft_model_state_dict(module, state, adapter_name=ADAPTER)
            missing = [key for key in result.missing_keys if f".{ADAPTER}." in key] + list(result.unexpected_keys)
        else:
            missing = [key for names in module.load_state_dict(state, strict=False) for key in names]
        if missing:
            raise PolicyError(f"{folder} does not fit {name}: {missing[0]} and {len(missing) - 1} more differ")


def go_on_from(modules: Modules, folder: Path) -> None:
    """Loads the adapters in a folder, of a run or in diffusers' or peft's layout, into those of the modules.

    Raises PolicyError where they differ in rank or layers, naming the first.
    """
    folder = folder / "lora" if (folder / "lora").is_dir() else folder
    for name, module in modules.items():
        given = lora_state(folder, name)
        own = get_peft_model_state_dict(module, adapter_name=ADAPTER)
        given = {key.replace(f".{ADAPTER}.", "."): value for key, value in given.items()}
        differ = [key for key in sorted(own.keys() | given.keys()) if _shape(own, key) != _shape(given, key)]
        if differ:
            first = differ[0]
            raise PolicyError(
                f"lora.init: the adapters in {folder} do not fit {name}: {first} is {_shape(given, first)} there and "
                f"{_shape(own, first)} here, and {len(differ) - 1} more differ; set rank and targets as theirs"
            )
        set_peft_model_state_dict(module, given, adapter_name=ADAPTER)


def _shape(state: Mapping[str, torch.Tensor], key: str) -> list[int] | str:
    return list(state[key].shape) if key in state else "missing"


def lora_state(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The factors of a component's adapter in a folder, by peft's names. Raises PolicyError if it holds none."""
    files = sorted((folder / name).glob("*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if not files:
        raise PolicyError(f"{folder} holds no LoRA weights (*.safetensors)")
    state = {key: value for file in files for key, value in load_file(file).items()}
    # the second if the module has a folder of its own, the third is peft's
    for prefix in (f"{name}.", f"{DENOISERS[0]}.", PEFT_PREFIX):
        if own := {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}:
            return own
    return state


def _full_state(folder: Path, name: str, kind: type) -> dict[str, torch.Tensor]:
    folder = folder if (folder / "config.json").is_file() else folder / name  # the first: a language model's own
    if not folder.is_dir():
        raise PolicyError(f"{folder} does not exist: give the folder that a run wrote its weights to")
    return kind.from_pretrained(folder).state_dict()


def _metadata(module: JSON) -> dict[str, JSON]:
    config = module.peft_config[ADAPTER].to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def _without_layer(module: nn.Module, targets: Sequence[str]) -> list[str]:
    """The given names that no layer's name ends with."""
    known = [name for name, _ in module.named_modules()]
    return [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in known)]


def _linear_layers(module: nn.Module, targets: str) -> list[str]:
    pattern = targets.removeprefix("match:")
    if targets not in ("attention", "all") and pattern == targets:
        raise PolicyError(
            f"lora.targets={targets!r} is not known: give attention, all, match:REGEX, or a list of names"
        )
    linear = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if pattern != targets:
        return [name for name in linear if re.fullmatch(pattern, name)]
    blocks = [name for name in linear if re.search(r"\.\d+\.", name)]  # layers of numbered blocks, not of the stem
    return blocks if targets == "all" else [name for name in blocks if _ATTENTION.search(name)]
