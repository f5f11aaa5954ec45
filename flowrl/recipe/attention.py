"""The key that chooses which kernels compute attention, and what each of them needs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from flowrl.recipe.base import Strict, key
from flowrl.recipe.errors import RecipeError

if TYPE_CHECKING:
    from flowrl.recipe.schema import Recipe


@dataclass(frozen=True)
class Needs:
    """What a kernel needs. half: weights in bfloat16 or float16. package: one that is imported by that name."""

    gpu: bool = False
    half: bool = False
    package: str | None = None


# by the names of diffusers' `set_attention_backend`; those of SageAttention have no backward pass
PIPELINES: dict[str, Needs] = {
    "native": Needs(),
    "_native_math": Needs(),
    "_native_flash": Needs(),
    "_native_efficient": Needs(gpu=True),
    "_native_cudnn": Needs(gpu=True, half=True),
    "flash": Needs(gpu=True, half=True, package="flash_attn"),
    "flex": Needs(gpu=True),
    "xformers": Needs(gpu=True, package="xformers"),
}
# by the names of transformers' `attn_implementation`
LANGUAGE_MODELS: dict[str, Needs] = {
    "eager": Needs(),
    "sdpa": Needs(),
    "flash_attention_2": Needs(gpu=True, half=True, package="flash_attn"),
    "flex_attention": Needs(gpu=True),
}


class AttentionKeys(Strict):
    """Which kernels compute attention in the networks that learn. backend: of a denoiser a name of diffusers'
    set_attention_backend, of a language model one of transformers' attn_implementation."""

    backend: str = key(..., "the name of a backend", min_length=1)


def check_attention(recipe: "Recipe", known: Mapping[str, Needs]) -> Iterator[RecipeError]:
    """What is not among `known`, and what it needs that is not there."""
    if recipe.attention is None:
        return
    place, name, remedy = "attention.backend", recipe.attention.backend, "or set attention=null"
    needs = known.get(name)
    if needs is None:
        problem = f"got {name!r}, which is none of {', '.join(known)}, the backends of such a model"
        yield RecipeError(place, problem, f"give one of them, {remedy}")
        return
    if needs.package is not None and find_spec(needs.package) is None:
        problem = f"got {name!r}, which needs the package {needs.package}, and it is not installed"
        yield RecipeError(place, problem, f"pip install {needs.package.replace('_', '-')}, {remedy}")
    if needs.gpu and recipe.device in ("cpu", "mps"):
        problem = f"got {name!r}, which needs a CUDA GPU, with device={recipe.device}"
        yield RecipeError(place, problem, f"set device=cuda, {remedy}")
    if needs.half and recipe.dtype.model == "float32":
        problem = f"got {name!r}, which computes in half precision alone, with dtype.model=float32"
        yield RecipeError(place, problem, f"set dtype.model=bfloat16, {remedy}")
