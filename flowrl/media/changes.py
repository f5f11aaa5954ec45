"""Pictures, and frames of videos, changed before a model reads them: the closed list that views choose from.

Each takes frames uint8 [T, H, W, 3], of a picture one, and a generator that decides all that is random; it gives frames
of the same shape, so that a processor writes as many placeholders for them.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Generator, Tensor

STEPS = 1000  # of the forward diffusion that `diffuse` takes its level from


def mask_patches(
    frames: Tensor, draw: Generator, *, share: float = 0.6, patch: int = 14, fill: Literal["black", "mean"] = "black"
) -> Tensor:
    """Each square of patch x patch pixels, counted from the upper left corner, is masked with probability `share`.

    All frames have the same masked squares, black or of the mean of all that they show. PAPO (arXiv:2507.06448, its
    code): 0.6, 14, black. OPA-DPO (arXiv:2501.09695, its code): 0.3, 1, mean.
    """
    _, height, width, _ = frames.shape
    rows, columns = -(-height // patch), -(-width // patch)
    masked = torch.rand(rows, columns, generator=draw) < share
    whole = masked.repeat_interleave(patch, 0).repeat_interleave(patch, 1)[:height, :width]
    return frames.masked_fill(whole[None, :, :, None], 0 if fill == "black" else round(float(frames.float().mean())))


def noise_levels() -> tuple[Tensor, Tensor]:
    """What a picture and what the noise are multiplied by after each of 1000 steps of diffusion, float32 [1000] each.

    Betas go along a sigmoid from 1e-5 to 5e-3 (NoisyRollout, arXiv:2504.13055, its code).
    """
    betas = torch.sigmoid(torch.linspace(-6, 6, STEPS)) * (5e-3 - 1e-5) + 1e-5
    kept = (1 - betas).cumprod(0)
    return kept.sqrt(), (1 - kept).sqrt()


def diffuse(frames: Tensor, draw: Generator, *, step: float = 500) -> Tensor:
    """The frames, in [0, 1], after the whole part of `step` steps of forward diffusion, clipped: Gaussian noise.

    At step 500 a picture keeps 0.863 of its values, beside noise of standard deviation 0.505; at step 0 all of them,
    beside noise of 0.005. NoisyRollout (arXiv:2504.13055, section 3.2, its code).
    """
    kept, added = (level[int(step)] for level in noise_levels())
    noise = torch.randn(frames.shape, generator=draw)
    return ((kept * (frames / 255) + added * noise).clamp(0, 1) * 255).round().to(torch.uint8)


def shuffle_frames(frames: Tensor, draw: Generator, *, shown: Sequence[int] | None = None) -> Tensor:
    """The frames in a random order. shown: positions of those that a model will see, which change places with each
    other (None: all). T-GRPO (arXiv:2503.21776)."""
    at = torch.arange(len(frames)) if shown is None else torch.as_tensor(list(shown))
    mixed = frames.clone()
    mixed[at] = frames[at[torch.randperm(len(at), generator=draw)]]
    return mixed


def drop(frames: Tensor, draw: Generator) -> Tensor:
    """Black frames: nothing is left of what they showed."""
    return torch.zeros_like(frames)


# kind of a view -> the function, whose keyword arguments are keys of the recipe (recipe/keys/views.py)
CHANGES: dict[str, Callable[..., Tensor]] = {
    "mask_patches": mask_patches,
    "diffuse": diffuse,
    "shuffle_frames": shuffle_frames,
    "drop": drop,
}
