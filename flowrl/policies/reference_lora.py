"""A second LoRA on the same model, frozen: what a divergence is measured from, at no more memory than its factors."""

import contextlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import set_peft_model_state_dict
from safetensors import safe_open

from flowrl.policies.adapters import ADAPTER, DENOISERS, Modules, adapted_layers, lora_state
from flowrl.policies.computing import follow
from flowrl.policies.errors import PolicyError
from flowrl.untyped import JSON, Network

REFERENCE = "reference"  # the name of the second adapter, and the beginning of those of further ones
METADATA = "lora_adapter_metadata"  # where diffusers keeps rank, alpha and targets, in a safetensors file


def reference_name(number: int) -> str:
    """The name of reference `number`, of its weights as of its adapter."""
    return f"{REFERENCE}_{number}" if number else REFERENCE


def add_reference_lora(modules: Modules, folder: Path, name: str = REFERENCE) -> None:
    """Loads the LoRA in a folder beside the one that is trained, which stays the active one; it is never trained.

    name: of the adapter, where there are several. Raises PolicyError where it does not fit the modules. Without rank
    and alpha in the files, the rank is that of the factors and alpha the same, as diffusers and peft have it.
    """
    for part, module in modules.items():
        state = lora_state(folder, part)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a second adapter is what is wanted
                _load(module, state, _config(folder, part), name)
        except (ValueError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise PolicyError(f"reference.path: the LoRA in {folder} does not fit {part} ({reason})") from error
        own = {n: p for n, p in module.named_parameters() if f".{name}." in n}
        if len(own) != len(state):
            raise PolicyError(
                f"reference.path: the LoRA in {folder} does not fit {part}: of its {len(state)} tensors {len(own)} "
                "have a place in it; give one that was trained on this model"
            )
        for parameter in own.values():
            parameter.data = parameter.data.float()
        follow(module)
        for layer in adapted_layers(module):
            layer.set_adapter(ADAPTER)  # freezes the others


@contextlib.contextmanager
def use_reference(modules: Modules, name: str = REFERENCE) -> Iterator[None]:
    """Within, the LoRA of a reference is active in place of the trained one."""
    layers = [layer for module in modules.values() for layer in adapted_layers(module)]
    for layer in layers:
        layer.set_adapter(name, inference_mode=True)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_adapter(ADAPTER)


def _load(module: Network, state: dict[str, torch.Tensor], config: dict[str, JSON] | None, name: str) -> None:
    if hasattr(module, "load_lora_adapter"):
        module.load_lora_adapter(dict(state), prefix=None, adapter_name=name, metadata=config)
        return
    ranks = {value.shape[0] for key, value in state.items() if "lora_A" in key}
    targets = sorted({key.rpartition(".lora_")[0] for key in state})
    given = {"r": max(ranks), "lora_alpha": max(ranks), "target_modules": targets} if config is None else config
    inject_adapter_in_model(LoraConfig(**given), module, name)
    set_peft_model_state_dict(module, state, adapter_name=name)


def _config(folder: Path, name: str) -> dict[str, JSON] | None:
    """Rank, alpha and targets as the files have them: diffusers' in a file's header, peft's in a file beside it."""
    beside = folder / "adapter_config.json"
    if beside.is_file():
        config = LoraConfig.from_pretrained(str(folder)).to_dict()
        return {key: config[key] for key in ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern")}
    for file in sorted((folder / name).glob("*.safetensors")) or sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            text = (opened.metadata() or {}).get(METADATA)
        if text is None:
            continue
        config = json.loads(text)
        for prefix in (f"{name}.", f"{DENOISERS[0]}."):
            if own := {k.removeprefix(prefix): v for k, v in config.items() if k.startswith(prefix)}:
                return own
        return config
    return None
