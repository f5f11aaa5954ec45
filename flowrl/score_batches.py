"""How samples are cut into calls of a reward, and what became of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flowrl.batches import whole_groups
from flowrl.contracts import Samples

LATEST = 100  # samples over which a rate of failures is taken, or more where a call has more
Cut = tuple[tuple[int, ...], ...]  # positions of the samples of each call


@dataclass
class Record:
    """Which of the latest samples a reward could not score (True), the last error, and whether one was told."""

    limit: float
    latest: list[bool] = field(default_factory=list)
    cause: Exception | None = None
    told: bool = False

    def add(self, missing: Sequence[bool]) -> None:
        """Notes what came of a call."""
        self.latest = [*self.latest, *missing][-max(LATEST, len(missing)) :]

    def too_many(self) -> str | None:
        """How many, in words, if they are more than allowed: of LATEST samples, or none of the first ones at all."""
        number = sum(self.latest)
        if self.limit < 1 and self.latest and number == len(self.latest):
            return f"any of {number} samples"
        if number > self.limit * max(LATEST, len(self.latest)):
            return f"{number} of the latest {len(self.latest)} samples, more than failure_limit {self.limit:g} allows"
        return None


def cut(rows: Sequence[int], group: Tensor, batch: int | None, groupwise: bool) -> Cut:
    """The rows in parts of at most `batch`; whole groups stay together, in as few parts as that allows."""
    if batch is None or len(rows) <= batch:
        return (tuple(rows),) if len(rows) else ()
    if not groupwise:
        return tuple(tuple(rows[i : i + batch]) for i in range(0, len(rows), batch))
    return tuple(tuple(part) for part in whole_groups(rows, group.tolist(), batch))


def moved(samples: Samples, device: str | torch.device) -> Samples:
    """The samples with their pixels and sound on a device."""
    given = {name: getattr(samples, name) for name in ("images", "video", "audio")}
    return replace(samples, **{name: pixels.to(device) for name, pixels in given.items() if pixels is not None})
