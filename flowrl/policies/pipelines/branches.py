"""Calls of a denoiser whose rows divide: those that know the prompt have gradient, the others have none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from flowrl.policies.errors import PolicyError
from flowrl.policies.pipelines.gates import is_tensor_list

ROW = "row"  # the mark of an input that has an entry for each row
REMEDY = "set objective.guidance_gradient=both"


@dataclass(frozen=True)
class Branches:
    """A call of the denoiser: what it asks for each row of a walk. prompted: whether each branch knows the prompt.

    in_blocks: all rows of a branch together, else all branches of a row. marks: the structure of the call's arguments,
    `ROW` where an input has an entry a row.
    """

    prompted: tuple[bool, ...]
    in_blocks: bool
    marks: Any

    def rows(self, number: int) -> tuple[list[int], list[int]]:
        """Rows of a call for `number` rows of a walk, (without the prompt, with it)."""
        places = range(number * len(self.prompted))
        known = [self.prompted[i // number if self.in_blocks else i % len(self.prompted)] for i in places]
        return [i for i in places if not known[i]], [i for i in places if known[i]]


class Guidance:
    """Runs a denoiser's calls with gradient in the rows that know the prompt alone.

    A call of both kinds becomes two, in rollouts too, so that a replay of as many rows is bit for bit its rollout. From
    one call of them all they differ by the rounding of another batch size, as a micro-batch does.
    """

    def __init__(self, calls: dict[tuple[str, int], list[Branches]]):
        self._calls = calls

    def __call__(self, name: str, position: int, rows: int, module: nn.Module, args: tuple, kwargs: dict) -> Any:
        """The module's output. position: how many calls of it came before in this iteration of the loop.

        Raises PolicyError for a call unlike all that were seen.
        """
        branches = self._met(name, position, rows, (args, kwargs))
        blind, prompted = branches.rows(rows)
        if not blind:
            return module(*args, **kwargs)
        if not prompted:
            with torch.no_grad():
                return module(*args, **kwargs)
        with torch.no_grad():
            without = self._part(module, branches, (args, kwargs), blind)
        return _merged(without, self._part(module, branches, (args, kwargs), prompted), blind + prompted)

    def _met(self, name: str, position: int, rows: int, given: Any) -> Branches:
        known = self._calls.get((name, position), [])
        for branches in known:
            if _size(branches.marks, given) == rows * len(branches.prompted):
                return branches
        raise PolicyError(
            f"objective.guidance_gradient: call {position + 1} of {name} in a step is unlike those of the probe, and "
            f"which of its rows know no prompt is not known; {REMEDY}"
        )

    def _part(self, module: nn.Module, branches: Branches, given: Any, rows: list[int]) -> Any:
        args, kwargs = _picked(given, branches.marks, rows)
        return module(*args, **kwargs)


def pairs(given: Any, other: Any, marks: Any) -> Iterator[tuple[Any, Any, Any]]:
    """(value, value, mark) of the leaves of two calls' arguments."""
    if isinstance(marks, list) and isinstance(given, list | tuple):
        for a, b, mark in zip(given, other, marks, strict=False):
            yield from pairs(a, b, mark)
    elif isinstance(marks, dict):
        for name, mark in marks.items():
            yield from pairs(given[name], other.get(name), mark)
    else:
        yield given, other, marks


def _size(marks: Any, given: Any) -> int | None:
    """Entries of the inputs that have one a row; None where there are none, or they disagree."""
    sizes = {len(value) for value, _, mark in pairs(given, given, marks) if mark == ROW}
    return sizes.pop() if len(sizes) == 1 else None


def _picked(given: Any, marks: Any, rows: list[int]) -> Any:
    """The arguments for some rows of a call."""
    if isinstance(marks, list) and isinstance(given, list | tuple):
        return type(given)(_picked(a, mark, rows) for a, mark in zip(given, marks, strict=True))
    if isinstance(marks, dict):
        return {name: _picked(value, marks.get(name), rows) for name, value in given.items()}
    if marks != ROW:
        return given
    return given[torch.tensor(rows, device=given.device)] if isinstance(given, Tensor) else [given[i] for i in rows]


def _merged(first: Any, second: Any, rows: list[int]) -> Any:
    """The output of a call from those of two parts, whose rows are these, one part after the other."""
    back = torch.tensor(rows).argsort()
    left, tree = tree_flatten(first, is_leaf=is_tensor_list)
    right, _ = tree_flatten(second, is_leaf=is_tensor_list)
    return tree_unflatten([_joined(a, b, back) for a, b in zip(left, right, strict=True)], tree)


def _joined(a: Any, b: Any, back: Tensor) -> Any:
    if isinstance(a, Tensor):
        whole = torch.cat([a, b])
        return whole if torch.equal(back, torch.arange(len(back))) else whole[back.to(whole.device)]
    if isinstance(a, list):
        return [[*a, *b][i] for i in back.tolist()]
    return b
