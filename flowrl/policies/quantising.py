"""Frozen weights in fewer bits, by the quantisation that diffusers and transformers read themselves.

int8 and fp8: torchao's, of weights alone, a scale for each row. nf4: bitsandbytes' 4 bits, on a GPU. gguf: the denoiser
from a file. Products are computed in the model's dtype, and adapters over it learn in float32.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, GGUFQuantizationConfig, PipelineQuantizationConfig
from torch import nn

from flowrl.policies.errors import PolicyError
from flowrl.recipe.keys.fitting import QuantizeKeys
from flowrl.untyped import JSON, Network

DENOISERS = ("transformer", "transformer_2", "unet")


def pipeline_arguments(
    place: str, keys: QuantizeKeys, names: Sequence[str] | None, dtype: torch.dtype
) -> dict[str, Any]:
    """Arguments of a pipeline's `from_pretrained` under which its denoisers are quantised. names: of these, if not the
    usual ones. Raises PolicyError where that cannot be."""
    listed: JSON = DiffusionPipeline.load_config(place)
    found = [name for name in names or DENOISERS if isinstance(listed.get(name), list | tuple) and listed[name][0]]
    if not found:
        raise PolicyError(f"quantize: {place} has no component named {', '.join(names or DENOISERS)}; remove quantize")
    if keys.weights == "gguf":
        if len(found) > 1:
            raise PolicyError(f"quantize.file: one file, but {place} has {', '.join(found)}; set quantize.weights=int8")
        return {found[0]: _from_file(place, found[0], str(listed[found[0]][1]), keys, dtype)}
    config = _config(keys, dtype, diffusers)
    return {"quantization_config": PipelineQuantizationConfig(quant_mapping={name: config for name in found})}


def language_arguments(keys: QuantizeKeys, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of a language model's `from_pretrained` under which its linear layers are, but for its head."""
    return {"quantization_config": _config(keys, dtype, transformers, ["lm_head"])}


def check_skipped(modules: Mapping[str, nn.Module], keys: QuantizeKeys) -> None:
    """Raises PolicyError for a name in `skip` that no module has: what it was to spare was quantised."""
    known = [name for module in modules.values() for name, _ in module.named_modules()]
    for name in keys.skip:
        if not any(is_within(own, [name]) for own in known):
            raise PolicyError(
                f"quantize.skip: no module of {', '.join(modules)} is called {name!r}; correct or remove it"
            )


def is_within(name: str, parts: Sequence[str]) -> bool:
    """Whether a module's dotted name contains one of these, as whole names."""
    return any(f".{part}." in f".{name}." for part in parts)


def is_quantised(module: Network) -> bool:
    """Whether a module has quantised weights, loaded so or made so."""
    if getattr(module, "hf_quantizer", None) is not None:
        return True
    return any(type(parameter.data) is not torch.Tensor for parameter in module.parameters())


def quantise(modules: Mapping[str, nn.Module], keys: QuantizeKeys, always: Sequence[str] = ()) -> None:
    """Quantises the linear layers of modules in place, as torchao does when they are loaded: of random weights, which
    no file holds. always: layers that are left as they are, beside those of `skip`."""
    from torchao.quantization import quantize_  # pyright: ignore[reportMissingImports]

    for module in modules.values():
        spared = [*keys.skip, *always, *(getattr(module, "_keep_in_fp32_modules", None) or [])]

        def meant(layer: nn.Module, name: str, spared: Sequence[str] = tuple(spared)) -> bool:
            return isinstance(layer, nn.Linear) and not is_within(name, spared)

        quantize_(module, _torchao(keys), filter_fn=meant)


def _config(keys: QuantizeKeys, dtype: torch.dtype, library: Any, always: Sequence[str] = ()) -> Any:
    """The library's own configuration of a quantisation."""
    spared = [*keys.skip, *always]
    if keys.weights == "nf4":
        if not torch.cuda.is_available():
            raise PolicyError(
                "quantize.weights: got 'nf4', which bitsandbytes makes on a GPU, and this machine has none; set int8"
            )
        how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
        return library.BitsAndBytesConfig(**how, llm_int8_skip_modules=spared or None)
    return library.TorchAoConfig(_torchao(keys), modules_to_not_convert=spared or None)


def _torchao(keys: QuantizeKeys) -> Any:
    """torchao's own configuration."""
    from torchao.quantization import (  # pyright: ignore[reportMissingImports]
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
    )

    return {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[keys.weights]()


def _from_file(place: str, name: str, kind: str, keys: QuantizeKeys, dtype: torch.dtype) -> nn.Module:
    """A denoiser from a GGUF file, with the pipeline's own config of it."""
    file = Path(str(keys.file)).expanduser()
    config = GGUFQuantizationConfig(compute_dtype=dtype)
    try:
        return getattr(diffusers, kind).from_single_file(
            str(file), config=place, subfolder=name, quantization_config=config, dtype=dtype
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PolicyError(
            f"quantize.file: {file} cannot be read as the {name} of {place} ({type(error).__name__}: {reason}): give a "
            "GGUF file of that model"
        ) from error
