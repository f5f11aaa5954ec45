"""Which rows may share a call of a pipeline, so that no row depends on the others in its call.

Most pipelines take any rows together. In some, a row depends on the longest prompt of its call, draws from the
generator of another row, or is treated differently from a row alone. The probe determines which, by replaying single
rows of calls of two.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowrl.policies.pipelines.walks.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Sharing:
    """rows: which of them share a call: any, those of one prompt, or none (one row per call). pictures: whether a call
    of several rows is given its input pictures as a list, one entry per row, or once for all rows.
    """

    rows: Literal["any", "prompt", "none"] = "any"
    pictures: Literal["each", "once"] = "each"

    def __str__(self) -> str:
        return {
            "any": "rows share calls",
            "prompt": "rows of one prompt share calls",
            "none": "one row a call",
        }[self.rows]

    def parts(self, trajectory: Trajectory, rows: Tensor) -> list[Tensor]:
        """Rows of a rollout, int64 [r], in parts that may share a call."""
        if self.rows == "any":
            return [rows]
        return [
            rows[torch.tensor(part)] for part in self.split([row // len(trajectory.tree.rows) for row in rows.tolist()])
        ]

    def split(self, prompts: Sequence[Hashable]) -> list[list[int]]:
        """Positions in parts that may share a call; `prompts`: of each row."""
        if self.rows == "any":
            return [list(range(len(prompts)))]
        if self.rows == "none":
            return [[i] for i in range(len(prompts))]
        parts: dict[Hashable, list[int]] = {}
        for i, prompt in enumerate(prompts):
            parts.setdefault(prompt, []).append(i)
        return list(parts.values())


ALONE = Sharing("none", "once")
TEXT = (Sharing("any"), Sharing("prompt"))
PICTURES = (Sharing("any", "each"), Sharing("prompt", "once"), Sharing("prompt", "each"))


def in_order(tensors: Iterable[Tensor], parts: Sequence[Sequence[int]]) -> Tensor:
    """Tensors [len(part), ...] of the parts of a split as one, in the order before it."""
    whole = torch.cat(list(tensors))
    at = [i for part in parts for i in part]
    return whole if at == sorted(at) else whole[torch.tensor(at).argsort().to(whole.device)]
