"""How samples are cut into calls of a reward, and what became of them."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flowrl.contracts import Samples
from flowrl.core.batches import whole_groups
from flowrl.media import pictures

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


def copied(samples: Samples, index: Sequence[int], device: str | torch.device | None = None) -> Samples:
    """The samples at these positions as a reward may have them: copies of all, pixels on a device if one is named.

    Whatever a reward writes, now or from a thread that it left behind, reaches neither training nor other rewards.
    """
    part = samples[index]  # tensors taken by index are copies
    prompts = copy.deepcopy(list(part.prompts))  # a prompt that stands there several times is one object again
    there = {} if device is None else {name: _to(getattr(part, name), device) for name in ("images", "video", "audio")}
    return replace(part, prompts=prompts, **there)


def _to(values: Tensor | None, device: str | torch.device) -> Tensor | None:
    return None if values is None else values.to(device)


def faults(samples: Samples) -> dict[int, str]:
    """Position -> why no reward is asked about this sample: its pictures or sound are none, as half a sentence.

    Raises ValueError for what is wrong with all alike: shape, size or type.
    """
    found: dict[int, str] = {}
    for pixels in (samples.images, samples.video):
        if pixels is not None and len(samples):
            if (wrong := pictures.shape_fault(pixels)) is not None:
                raise ValueError(wrong)
            found |= pictures.value_faults(pixels)
    if samples.audio is not None and len(samples):
        finite = torch.stack([one.isfinite().all() for one in samples.audio.detach()]).tolist()
        found |= {i: "sound with values that are not finite" for i, good in enumerate(finite) if not good}
    return found
