"""What the sizes of a model depend on, and its measured sizes: numbers and texts alone, which JSON can hold."""

from dataclasses import dataclass

from flowrl.untyped import JSON


@dataclass(frozen=True)
class SizeQuery:
    """What the sizes of a model's modules depend on. rows: of a training forward; tokens: of the longest prompt and of
    the negative one; lora None: all weights learn."""

    model: str
    lora: dict[str, JSON] | None
    dtype: str
    rows: int
    pipeline: dict[str, JSON]
    tokens: tuple[int, int]


@dataclass(frozen=True)
class MeasuredSizes:
    """Measured on the modules: parameters and bytes by component, what learns, and what calls keep.

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
