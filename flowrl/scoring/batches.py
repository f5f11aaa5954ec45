"""How samples are cut into calls of a reward, and a record of those that were not scored."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from flowrl.contracts import Samples
from flowrl.core.batches import whole_groups
from flowrl.media import pictures

LATEST = 100  # samples over which the failure rate is taken, or more if a call has more
Slices = tuple[tuple[int, ...], ...]  # positions of the samples of each call


@dataclass
class FailureRecord:
    """Which of the latest samples a reward could not score (True), the last error, and whether one was reported."""

    limit: float
    latest: list[bool] = field(default_factory=list)
    cause: Exception | None = None
    warned: bool = False

    def add(self, missing: Sequence[bool]) -> None:
        """Records the outcome of a call."""
        self.latest = [*self.latest, *missing][-max(LATEST, len(missing)) :]

    def too_many(self) -> str | None:
        """How many, in words, if they are more than allowed: of LATEST samples, or none of the first ones at all."""
        number = sum(self.latest)
        if self.limit < 1 and self.latest and number == len(self.latest):
            return f"any of {number} samples"
        if number > self.limit * max(LATEST, len(self.latest)):
            return f"{number} of the latest {len(self.latest)} samples, more than failure_limit {self.limit:g} allows"
        return None


def cut_rows(rows: Sequence[int], group: Tensor, batch: int | None, groupwise: bool) -> Slices:
    """The rows in parts of at most `batch`; whole groups (int64 [B]) stay together, in as few parts as possible."""
    if batch is None or len(rows) <= batch:
        return (tuple(rows),) if len(rows) else ()
    if not groupwise:
        return tuple(tuple(rows[i : i + batch]) for i in range(0, len(rows), batch))
    return tuple(tuple(part) for part in whole_groups(rows, group.tolist(), batch))


def copy_samples(samples: Samples, index: Sequence[int], device: str | torch.device | None = None) -> Samples:
    """Copies of the samples at these positions for a reward, with pixels and sound on a device if one is given.

    Whatever a reward writes, now or from a thread that it left behind, reaches neither training nor other rewards.
    """
    part = samples[index]  # tensors taken by index are copies
    prompts = copy.deepcopy(list(part.prompts))  # a prompt that occurs several times stays one object
    there = {} if device is None else {name: _to(getattr(part, name), device) for name in ("images", "video", "audio")}
    return replace(part, prompts=prompts, steps={}, **there)


def _to(values: Tensor | None, device: str | torch.device) -> Tensor | None:
    return None if values is None else values.to(device)


def sample_faults(samples: Samples) -> dict[int, str]:
    """Position -> why no reward is asked about this sample: its pictures or sound are invalid, or what the model talked
    to failed. Half a sentence.

    Raises ValueError for what is wrong with all samples: shape, size or type.
    """
    reasons: dict[int, str] = {}
    for pixels in (samples.images, samples.video):
        if pixels is not None and len(samples):
            if (wrong := pictures.shape_fault(pixels)) is not None:
                raise ValueError(wrong)
            reasons |= pictures.value_faults(pixels)
    if samples.audio is not None and len(samples):
        finite = torch.stack([one.isfinite().all() for one in samples.audio.detach()]).tolist()
        reasons |= {i: "sound with values that are not finite" for i, good in enumerate(finite) if not good}
    for i, talk in enumerate(samples.talks or ()):
        if talk.failure is not None:
            reasons[i] = talk.failure
    return reasons
