"""Which frames of a video are looked at."""

import torch
from torch import Tensor


def evenly(total: int, number: int) -> list[int]:
    """`number` frames spread over `total`, the first and the last among them, as linspace rounded (half to even)."""
    return torch.linspace(0, total - 1, number).round().long().tolist()


def some(video: Tensor, number: int | None) -> Tensor:
    """At most `number` frames, evenly spread, of a video [B, T, ...]; all of them for None."""
    if number is None or number >= video.shape[1]:
        return video
    return video[:, evenly(video.shape[1], number)]
