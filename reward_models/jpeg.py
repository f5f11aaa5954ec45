"""Size of a picture as a JPEG: the reward that needs no weights (DDPO, arXiv 2305.13301, section 5.1).

Small files are plain pictures, large ones busy. It says nothing about quality: use it to see that a model, a sampler
and a machine learn at all. Kilobytes are 1000 bytes, as in the published code.
"""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flowrl.contracts import Samples


def jpeg_compressibility(samples: Samples, *, quality: int = 95) -> Tensor:
    """Minus the size in kilobytes, float32 [B]; a video counts with the mean of its frames."""
    return -_sizes(samples, quality)


def jpeg_incompressibility(samples: Samples, *, quality: int = 95) -> Tensor:
    """The size in kilobytes, float32 [B]; a video counts with the mean of its frames."""
    return _sizes(samples, quality)


def _sizes(samples: Samples, quality: int) -> Tensor:
    """Kilobytes of each sample, float32 [B]. Raises ValueError for text and for a quality outside 1 to 100."""
    if not 1 <= quality <= 100:
        raise ValueError(f"quality={quality}: accepted is 1 to 100, DDPO takes 95")
    frames = samples.images.unsqueeze(1) if samples.images is not None else samples.video
    if frames is None:
        raise ValueError("the JPEG rewards score images and video; this model gives neither")
    pixels = (frames.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 1, 3, 4, 2).cpu().numpy()
    return torch.tensor([sum(_kilobytes(f, quality) for f in clip) / len(clip) for clip in pixels], dtype=torch.float32)


def _kilobytes(pixels: np.ndarray, quality: int) -> float:
    """Size of one picture, uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=quality)
    return buffer.tell() / 1000
