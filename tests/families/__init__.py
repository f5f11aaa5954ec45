"""Tiny random diffusers pipelines of many families, built offline, for the tests.

``get(name)`` is the Family record, ``pipeline(name)`` a cached shared pipeline, ``get(name).build()`` a fresh one::

    family = families.get("flux")
    pipe = families.pipeline("flux")
    generators = families.generators([0, 1])
    out = pipe(**family.batched_call(["a", "b"]), generator=generators, num_inference_steps=4, output_type="pt")
"""

from __future__ import annotations

import functools
import importlib

import torch
from diffusers import DiffusionPipeline

from .base import Family

_PARTS = ("image", "image_more", "video", "edit", "special", "extra", "noise", "audio")
_FAMILIES = {
    family.name: family for part in _PARTS for family in importlib.import_module(f".{part}", __name__).families()
}
NAMES = tuple(name for name, family in _FAMILIES.items() if family.contract)
OUTSIDE = tuple(name for name, family in _FAMILIES.items() if not family.contract)

__all__ = ["NAMES", "OUTSIDE", "Family", "generators", "get", "pipeline"]


def get(name: str) -> Family:
    """The record of a family: how to build it and how to call it."""
    return _FAMILIES[name]


@functools.cache
def pipeline(name: str) -> DiffusionPipeline:
    """A pipeline built on first use and shared afterwards: do not change its weights (use ``get(name).build()``)."""
    return get(name).build()


def generators(seeds: list[int]) -> list[torch.Generator]:
    """One CPU generator per row."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]
