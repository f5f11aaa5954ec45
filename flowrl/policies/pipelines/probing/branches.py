"""Calls of a denoiser whose rows are split: those that depend on the prompt have gradient, the others do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.calls.structures import is_tensor_list
from flowrl.untyped import Nest

ROW = "row"  # the mark of an input that has an entry for each row
REMEDY = "set objective.guidance_gradient=both"


@dataclass(frozen=True)
class Branches:
    """A call of the denoiser: its branches for each row of a walk. prompted: whether each branch depends on the prompt.

    in_blocks: all rows of a branch together, else all branches of a row. marks: the structure of the call's arguments,
    with `ROW` for an input that has one entry per row.
    """

    prompted: tuple[bool, ...]
    in_blocks: bool
    marks: Nest

    def rows(self, number: int) -> tuple[list[int], list[int]]:
        """Rows of a call for `number` rows of a walk, (without the prompt, with it)."""
        places = range(number * len(self.prompted))
        known = [self.prompted[i // number if self.in_blocks else i % len(self.prompted)] for i in places]
        return [i for i in places if not known[i]], [i for i in places if known[i]]


class Guidance:
    """Runs a denoiser's calls with gradient only in the rows that depend on the prompt.

    A call with both kinds of rows becomes two, in rollouts as well, so that a replay of as many rows is its rollout bit
    for bit. They differ from a single call by the rounding of another batch size, as a micro-batch does.
    """

    def __init__(self, calls: dict[tuple[str, int], list[Branches]]):
        self._calls = calls

    def __call__(self, name: str, position: int, rows: int, module: nn.Module, args: tuple, kwargs: dict) -> Nest:
        """The module's output. position: number of its earlier calls in this iteration of the loop.

        Raises PolicyError for a call unlike any in the probe.
        """
        branches = self._branches_of(name, position, rows, (args, kwargs))
        blind, prompted = branches.rows(rows)
        if not blind:
            return module(*args, **kwargs)
        if not prompted:
            with torch.no_grad():
                return module(*args, **kwargs)
        with torch.no_grad():
            without = self._part(module, branches, (args, kwargs), blind)
        return _merge_outputs(without, self._part(module, branches, (args, kwargs), prompted), blind + prompted)

    def _branches_of(self, name: str, position: int, rows: int, given: Nest) -> Branches:
        known = self._calls.get((name, position), [])
        for branches in known:
            if _size(branches.marks, given) == rows * len(branches.prompted):
                return branches
        raise PolicyError(
            f"objective.guidance_gradient: call {position + 1} of {name} in a step is unlike those of the probe, so it "
            f"is not known which of its rows are free of the prompt; {REMEDY}"
        )

    def _part(self, module: nn.Module, branches: Branches, given: Nest, rows: list[int]) -> Nest:
        args, kwargs = _pick_rows(given, branches.marks, rows)
        return module(*args, **kwargs)


def leaf_pairs(given: Nest, other: Nest, marks: Nest) -> Iterator[tuple[Nest, Nest, Nest]]:
    """(value, other value, mark) of the leaves of two calls' arguments."""
    if isinstance(marks, list) and isinstance(given, list | tuple):
        for a, b, mark in zip(given, other, marks, strict=False):
            yield from leaf_pairs(a, b, mark)
    elif isinstance(marks, dict):
        for name, mark in marks.items():
            yield from leaf_pairs(given[name], other.get(name), mark)
    else:
        yield given, other, marks


def _size(marks: Nest, given: Nest) -> int | None:
    """Number of entries of the inputs that have one per row; None if there are none, or if they disagree."""
    sizes = {len(value) for value, _, mark in leaf_pairs(given, given, marks) if mark == ROW}
    return sizes.pop() if len(sizes) == 1 else None


def _pick_rows(given: Nest, marks: Nest, rows: list[int]) -> Nest:
    """The arguments for some rows of a call."""
    if isinstance(marks, list) and isinstance(given, list | tuple):
        return type(given)(_pick_rows(a, mark, rows) for a, mark in zip(given, marks, strict=True))
    if isinstance(marks, dict):
        return {name: _pick_rows(value, marks.get(name), rows) for name, value in given.items()}
    if marks != ROW:
        return given
    return given[torch.tensor(rows, device=given.device)] if isinstance(given, Tensor) else [given[i] for i in rows]


def _merge_outputs(first: Nest, second: Nest, rows: list[int]) -> Nest:
    """The output of a call from those of its two parts; rows: where their rows belong, one part after the other."""
    back = torch.tensor(rows).argsort()
    left, tree = tree_flatten(first, is_leaf=is_tensor_list)
    right, _ = tree_flatten(second, is_leaf=is_tensor_list)
    return tree_unflatten([_join(a, b, back) for a, b in zip(left, right, strict=True)], tree)


def _join(a: Nest, b: Nest, back: Tensor) -> Nest:
    if isinstance(a, Tensor):
        whole = torch.cat([a, b])
        return whole if torch.equal(back, torch.arange(len(back))) else whole[back.to(whole.device)]
    if isinstance(a, list):
        return [[*a, *b][i] for i in back.tolist()]
    return b
