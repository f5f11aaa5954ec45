"""Size of a picture as a JPEG: the reward that needs no weights (DDPO, arXiv 2305.13301, section 5.1).

Small files are plain pictures, large ones busy. It says nothing about quality: use it to check that a model, a sampler
and a machine learn at all. Kilobytes are 1000 bytes, and a file is written with quality 95, as in the published code.
That scale is DDPO's; trainers of flow models divide by 500 (weight: 0.002).
"""

import io

import torch
from PIL import Image
from torch import Tensor

from flowrl.contracts import Samples
from reward_models.parts import inputs


def jpeg_compressibility(samples: Samples, *, quality: int = 95) -> Tensor:
    """Minus the size in kilobytes, float32 [B]; a video counts with the mean of its frames."""
    return -_sizes("jpeg_compressibility", samples, quality)


def jpeg_incompressibility(samples: Samples, *, quality: int = 95) -> Tensor:
    """The size in kilobytes, float32 [B]; a video counts with the mean of its frames."""
    return _sizes("jpeg_incompressibility", samples, quality)


def _sizes(reward: str, samples: Samples, quality: int) -> Tensor:
    """Kilobytes, float32 [B], NaN for pixels that are not finite. Raises ValueError for text or a wrong quality."""
    if not 1 <= quality <= 100:
        raise ValueError(f"{reward}: quality={quality}: accepted is 1 to 100, DDPO takes 95")
    frames = inputs.frames(reward, samples)
    lost = inputs.is_unscorable(frames).tolist() if len(samples) else []
    scores = [torch.nan if bad else _mean_size(clip, quality) for clip, bad in zip(frames, lost, strict=True)]
    return torch.tensor(scores, dtype=torch.float32)


def _mean_size(frames: Tensor, quality: int) -> float:
    """Mean kilobytes of pictures [T, 3, H, W]."""
    return sum(_kilobytes(picture, quality) for picture in inputs.as_pil(frames)) / len(frames)


def _kilobytes(picture: Image.Image, quality: int) -> float:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality)
    return buffer.tell() / 1000
