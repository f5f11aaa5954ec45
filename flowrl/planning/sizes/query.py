"""What the sizes of a model depend on, and its measured sizes: numbers and texts alone, which JSON can hold."""

from dataclasses import dataclass

from flowrl.untyped import JSON


@dataclass(frozen=True)
class SizeQuery:
    """What the sizes of a model's modules depend on. text: the longest prompt; pictures: by argument, width and height
    of each that a prompt comes with; lora None: all weights learn."""

    model: str
    lora: dict[str, JSON] | None
    dtype: str
    pipeline: dict[str, JSON]
    text: str
    pictures: dict[str, list[list[int]]]


@dataclass(frozen=True)
class MeasuredSizes:
    """Measured on the modules: parameters and bytes by component, what learns, and what calls keep.

    learning, state, added: parameters that learn, their bytes, bytes of LoRA. latent: numbers of one row's states.
    kept: of each denoiser, for one row (whole, recomputing, block), see activations.py; fixed: of all rows together.
    unknown: why there are neither.
    """

    parameters: dict[str, int]
    frozen: dict[str, int]
    trained: list[str]
    learning: int
    state: int
    added: int
    pipeline: str
    latent: int | None
    kept: list[list[int]]
    fixed: int = 0
    unknown: str | None = None
