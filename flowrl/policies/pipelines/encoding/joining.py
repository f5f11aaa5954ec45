"""How the results of encoding prompts one by one are put together as the result of encoding them in one call.

That is learnt from a few texts of different lengths, encoded alone and together: which outputs have a row a prompt,
are padded with zeros to the longest, grow with it, or are a mask that is left out where it is all ones. What comes of
it has to be what the encoder itself gives; where it is not, as where padding means something, there is no way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from flowrl.policies.pipelines.calls.structures import is_tensor_list
from flowrl.untyped import Nest

TOLERANCE, TOLERANCE_HALF = 1e-4, 3e-2  # relative to the size of a tensor: other sizes of a call round differently
Encode = Callable[[Sequence[str]], Nest]
Leaves = list[Nest]


@dataclass(frozen=True)
class Joining:
    """A way for each leaf of a result, and the structure of a result of several prompts.

    rows: a tensor's entries; entries: a list's, one each; layers: a list of tensors of which each is joined by its
    entries; longest: that of the longest prompt; mask:N: of the valid tokens of leaf N, or None where all are.
    """

    ways: tuple[str, ...]
    tree: TreeSpec

    def __call__(self, alone: Sequence[Nest], at: Sequence[int]) -> Nest:
        """The result [len(at), ...] for prompts alone[i], i of at."""
        of_each = [flatten(one)[0] for one in alone]
        return tree_unflatten([self._leaf(n, of_each, at) for n in range(len(self.ways))], self.tree)

    def _leaf(self, number: int, of_each: list[Leaves], at: Sequence[int]) -> Nest:
        way, values = self.ways[number], [leaves[number] for leaves in of_each]
        if way == "rows":
            return _rows(values, at)
        if way == "entries":
            return [values[i][0] for i in at]
        if way == "layers":
            return [_rows(list(layer), at) for layer in zip(*values, strict=True)]
        if way.startswith("mask:"):
            return _mask([leaves[int(way[5:])] for leaves in of_each], at)
        return max(values, key=lambda value: value.numel() if isinstance(value, Tensor) else 0)


def find_joining(encode: Encode, texts: Sequence[str]) -> Joining | None:
    """The way that these texts show, of different lengths; None if there is none that gives what the encoder does."""
    together, tree = flatten(encode(texts))
    alone = [encode([text]) for text in texts]
    of_each = [flatten(one)[0] for one in alone]
    if any(len(leaves) != len(together) for leaves in of_each):
        return None
    ways = [_way(whole, [leaves[n] for leaves in of_each], len(texts)) for n, whole in enumerate(together)]
    padded = next((n for n, way in enumerate(ways) if way == "rows" and together[n].dim() > 1), None)
    ways = [f"mask:{padded}" if way == "mask" and padded is not None else way for way in ways]
    known = [way for way in ways if way not in (None, "mask")]
    if len(known) < len(ways):
        return None
    joining = Joining(tuple(map(str, known)), tree)
    everyone = list(range(len(texts)))
    trials = [(alone, everyone, together)]
    if any(way.startswith("mask:") for way in known):  # left out where all prompts are equally long
        trials.append((alone[:1], [0, 0], flatten(encode([texts[0], texts[0]]))[0]))
    for results, at, expected in trials:
        if not all(map(same, flatten(joining(results, at))[0], expected)):
            return None
    return joining


def flatten(result: Nest) -> tuple[Leaves, TreeSpec]:
    """The leaves of a result, lists of tensors and None among them, and its structure."""
    return tree_flatten(result, is_leaf=lambda node: node is None or is_tensor_list(node))


def _way(whole: Nest, alone: Leaves, number: int) -> str | None:
    if isinstance(whole, list):
        if len(whole) == number and all(isinstance(one, list) and len(one) == 1 for one in alone):
            return "entries"
        even = all(isinstance(one, list) and len(one) == len(whole) for one in alone)
        return "layers" if even and all(len(layer) == number for layer in whole) else None
    if not isinstance(whole, Tensor):
        return "longest" if all(one == whole for one in alone) else None
    if all(one is None for one in alone):
        return "mask" if whole.dim() == 2 and len(whole) == number else None
    if not all(isinstance(one, Tensor) and one.dim() == whole.dim() for one in alone):
        return None
    if whole.dim() and len(whole) == number and all(len(one) == 1 for one in alone):
        return "rows"
    return "longest"


def _rows(values: Leaves, at: Sequence[int]) -> Nest:
    """Entries of tensors [1, ...] as one, padded at their ends with zeros where others are longer."""
    if values[0] is None:
        return None
    longest = [max(value.shape[d] for value in values) for d in range(1, values[0].dim())]
    if any(list(value.shape[1:]) != longest for value in values):
        wide = [value.new_zeros((1, *longest)) for value in values]
        for to, value in zip(wide, values, strict=True):
            to[tuple(slice(size) for size in value.shape)] = value
        values = wide
    return torch.cat([values[i] for i in at])


def _mask(values: Leaves, at: Sequence[int]) -> Tensor | None:
    lengths = [value.shape[1] for value in values]
    if len(set(lengths)) == 1:
        return None
    places = torch.arange(max(lengths), device=values[0].device)
    return torch.stack([places < lengths[i] for i in at])


def same(found: Nest, expected: Nest) -> bool:
    """Whether two results are equal within the rounding of calls of another size."""
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(same, found, expected))
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return found is expected or (type(found) is type(expected) and bool(found == expected))
    if found.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return torch.equal(found.to(expected.dtype), expected)
    limit = TOLERANCE if expected.dtype in (torch.float32, torch.float64) else TOLERANCE_HALF
    return bool((found - expected).abs().max() <= limit * (1 + expected.abs().max()))
