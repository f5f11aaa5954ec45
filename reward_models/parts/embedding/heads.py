"""Heads on an embedding: chains of linear layers, read by their shapes."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from reward_models.parts.checkpoints import fill


def linear_chain(tensors: Mapping[str, Tensor], width: int, what: str) -> nn.Sequential:
    """The linear layers of a state dict (weights [out, in]), applied in sequence with nothing between: `width` to 1.

    Layers are ordered by the numbers in their names; dropout, which has no tensors, does nothing at inference. Raises
    ValueError, naming `what`, for tensors that are not such a chain.
    """
    names = sorted((name.removesuffix(".weight") for name in tensors if name.endswith(".weight")), key=_numbers_in)
    expected = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    if not names or expected != set(tensors):
        odd = sorted(expected ^ set(tensors)) or ["nothing"]
        raise ValueError(f"{what}: {odd[0]!r} is no part of a chain of linear layers; is it the file of another model?")
    sizes = [tuple(tensors[f"{name}.weight"].shape) for name in names]
    ends = [width, *(size[0] for size in sizes)]
    if any(len(size) != 2 or size[1] != before for size, before in zip(sizes, ends, strict=False)) or ends[-1] != 1:
        layers = ", ".join("x".join(map(str, size[::-1])) for size in sizes)
        raise ValueError(
            f"{what}: its layers {layers} lead from no embedding of {width} to 1; it is another model's head"
        )
    chain = nn.Sequential(*(nn.Linear(before, after) for before, after in zip(ends, ends[1:], strict=False)))
    at = {name: str(place) for place, name in enumerate(names)}
    fill(
        chain, {f"{at[name]}.{kind}": tensors[f"{name}.{kind}"] for name in names for kind in ("weight", "bias")}, what
    )
    return chain.float()


def _numbers_in(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]
