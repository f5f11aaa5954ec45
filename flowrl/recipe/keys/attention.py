"""The key that chooses which kernels compute attention, and what each of them needs."""

from dataclasses import dataclass

from flowrl.recipe.base import Strict, key


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
