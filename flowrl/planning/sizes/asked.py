"""What is asked of the modules of a model, and what they tell: numbers alone, which JSON can hold."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Asked:
    """What the sizes of a model's modules depend on. rows: of a training forward; tokens: of the longest prompt and of
    the negative one; lora None: all weights learn."""

    model: str
    lora: dict[str, Any] | None
    dtype: str
    rows: int
    pipeline: dict[str, Any]
    tokens: tuple[int, int]


@dataclass(frozen=True)
class Measured:
    """What the modules themselves tell: by component its parameters and bytes, what learns, and what calls keep.

    learning, state, added: parameters that learn, their bytes, bytes of LoRA. kept: of each denoiser (whole,
    recomputing, block), see activations.py.
    """

    parameters: dict[str, int]
    frozen: dict[str, int]
    trained: list[str]
    learning: int
    state: int
    added: int
    pipeline: str
    latent: list[int] | None
    kept: list[list[int]]
