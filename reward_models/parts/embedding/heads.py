"""Heads on an embedding: chains of linear layers, read by their shapes."""

import re
from collections.abc import Mapping

from torch import Tensor, nn

from reward_models.parts.checkpoints import fill


def linear_chain(tensors: Mapping[str, Tensor], width: int, what: str) -> nn.Sequential:
    """The linear layers of a state dict, applied one after the other with nothing between, from `width` to 1.

    Layers are taken in the order of the numbers in their names; dropout, which has no tensors, does nothing when a
    model is used. Raises ValueError, naming `what`, for tensors that are no such chain.
    """
    names = sorted((name.removesuffix(".weight") for name in tensors if name.endswith(".weight")), key=_numbered)
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


def _numbered(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]
