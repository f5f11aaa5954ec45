"""A pipeline's components from their configs alone, of a folder or of a known hub id, built on the meta device."""

import json
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from flowrl.known.places import config_place
from flowrl.policies.random.weights import kept_in_float32
from flowrl.untyped import JSON


@dataclass(frozen=True)
class Component:
    """A component that holds weights. kind: its class in diffusers or transformers."""

    name: str
    kind: type[nn.Module]
    config: dict[str, JSON]

    def build(self, dtype: torch.dtype) -> nn.Module:
        """The module on the meta device as from_pretrained(dtype=dtype) loads it: without memory or weights, frozen."""
        with torch.device("meta"):
            if issubclass(self.kind, transformers.PreTrainedModel):
                config = dict(self.config)
                own = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
                module: Any = self.kind._from_config(own)
            else:
                module = self.kind.from_config(self.config)  # pyright: ignore[reportAttributeAccessIssue]
        exempt = kept_in_float32(module, dtype)
        for name, parameter in module.named_parameters():
            single = any(part in name.split(".") for part in exempt)
            parameter.data = parameter.data.to(torch.float32 if single else dtype)
        return module.requires_grad_(False).eval()


def components(model: str) -> dict[str, Component] | None:
    """The components of a model by name, in the order of the pipeline's index; None if no config is available."""
    folder = config_place(model)
    index = folder / "model_index.json"
    if not index.is_file():
        return None
    listed = json.loads(index.read_text(encoding="utf-8"))
    folders = {n: v for n, v in listed.items() if isinstance(v, list) and (folder / n / "config.json").is_file()}
    entries = {n: (v, json.loads((folder / n / "config.json").read_text(encoding="utf-8"))) for n, v in folders.items()}
    kinds = {name: _kind(*kind) for name, (kind, _) in entries.items()}
    return {n: Component(n, kinds[n], config) for n, (_, config) in entries.items() if kinds[n] is not None}  # pyright: ignore[reportArgumentType]


def _kind(library: str, name: str) -> type[nn.Module] | None:
    """The class that an index names: of diffusers or transformers, or beside one of diffusers' pipelines."""
    kind = getattr(diffusers, name, None) or getattr(transformers, name, None)
    kind = kind or getattr(getattr(diffusers.pipelines, library, None), name, None)
    return kind if isinstance(kind, type) and issubclass(kind, nn.Module) else None


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


def num_parameters(module: nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())
