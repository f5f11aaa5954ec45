"""Samples as the arrays that a reward works on, checked: one clear line for what cannot be scored at all.

Pixels that are not finite invalidate their sample alone, not the batch: see `is_unscorable`.
"""

import hashlib

import torch
from PIL import Image
from torch import Tensor

from flowrl.contracts import Samples
from flowrl.media.pictures import is_in_range, value_range


def pictures(reward: str, samples: Samples) -> Tensor:
    """The images, float [B, 3, H, W]. Raises ValueError, naming the reward, for samples without or of another form."""
    if samples.images is None:
        raise ValueError(f"{reward} scores images; this model gives {_kinds(samples)}")
    return check_pixels(reward, samples.images, 4)


def frames(reward: str, samples: Samples) -> Tensor:
    """Videos as they are and images as videos of one frame, float [B, T, 3, H, W]. Raises ValueError, as pictures."""
    if samples.video is not None:
        return check_pixels(reward, samples.video, 5)
    if samples.images is None:
        raise ValueError(f"{reward} scores images and video; this model gives {_kinds(samples)}")
    return check_pixels(reward, samples.images, 4).unsqueeze(1)


def clips(reward: str, samples: Samples) -> Tensor:
    """The videos, float [B, T, 3, H, W]. Raises ValueError, naming the reward, for samples without."""
    if samples.video is None:
        raise ValueError(f"{reward} scores video; this model gives {_kinds(samples)}")
    return check_pixels(reward, samples.video, 5)


def sounds(reward: str, samples: Samples) -> tuple[Tensor, int]:
    """The sound, float [B, C, T], and its sample rate in Hz. Raises ValueError, naming the reward, for samples without,
    or of another form."""
    if samples.audio is None or samples.sample_rate is None:
        raise ValueError(f"{reward} scores sound; this model gives {_kinds(samples)}")
    if samples.audio.ndim != 3 or 0 in samples.audio.shape[1:] or not samples.audio.is_floating_point():
        got = f"{samples.audio.dtype} {list(samples.audio.shape)}"
        raise ValueError(f"{reward}: sound is {got}; accepted is floating point [B, C, T], none empty")
    return samples.audio, samples.sample_rate


def check_pixels(reward: str, pixels: Tensor, axes: int) -> Tensor:
    """The pixels, if they are float [..., 3, H, W] with `axes` axes and in [0, 1] where finite. Else ValueError."""
    shape = "[B, 3, H, W]" if axes == 4 else "[B, T, 3, H, W]"
    if pixels.ndim != axes or pixels.shape[-3] != 3 or 0 in pixels.shape[1:]:
        raise ValueError(f"{reward}: pixels have shape {list(pixels.shape)}; accepted is {shape}, RGB, none empty")
    if not pixels.is_floating_point():
        raise ValueError(f"{reward}: pixels are {pixels.dtype}; accepted is floating point in [0, 1]: divide by 255")
    low, high = value_range(pixels)
    wrong = low.isfinite() & high.isfinite() & ~is_in_range(low, high)
    if wrong.any():
        lowest, highest = float(low[wrong].min()), float(high[wrong].max())
        raise ValueError(f"{reward}: pixels reach from {lowest:.3g} to {highest:.3g}; accepted is [0, 1]")
    return pixels


def is_unscorable(pixels: Tensor) -> Tensor:
    """Which samples have no score because a pixel is NaN or infinite, bool [B], of pixels [B, ...]."""
    low, high = value_range(pixels)
    return ~(low.isfinite() & high.isfinite()).to(pixels.device)


def digest(pixels: Tensor) -> bytes:
    """Identifies pixels of any shape: the SHA-256 of shape, type and values. For results that rewards share."""
    own = pixels.detach().cpu().contiguous()
    head = f"{own.dtype}{tuple(own.shape)}".encode()
    return hashlib.sha256(head + own.reshape(-1).view(torch.uint8).numpy().tobytes()).digest()


def as_uint8(pixels: Tensor) -> Tensor:
    """Pixels [0, 1] as the nearest of 256 levels, uint8 on the CPU, of the same shape; non-finite ones are black."""
    return (pixels.detach().float().nan_to_num(0, 0, 0).clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def as_pil(pixels: Tensor) -> list[Image.Image]:
    """RGB pictures of pixels [N, 3, H, W] in [0, 1], as their PNG files hold them."""
    return [Image.fromarray(one.permute(1, 2, 0).contiguous().numpy()) for one in as_uint8(pixels)]


def _kinds(samples: Samples) -> str:
    given = {"images": samples.images, "video": samples.video, "sound": samples.audio, "texts": samples.texts}
    return ", ".join(name for name, value in given.items() if value is not None) or "nothing"
