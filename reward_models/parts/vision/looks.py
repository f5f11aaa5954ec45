"""Statistics of pictures: one formula each, for the metrics of samples and for rewards.

Every function takes float [B, 3, H, W] in [0, 1] and returns [B], with gradient; pixels that are not finite give NaN or
infinity.
"""

import torch
from torch import Tensor
from torch.nn import functional

COLOUR_SIZE = 256  # colours are measured on pictures reduced to this many pixels a side
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def downscale(x: Tensor, size: int = COLOUR_SIZE) -> Tensor:
    """The pictures [B, 3, H, W] with sides of at most `size`, by area averaging; smaller ones as they are."""
    height, width = min(x.shape[-2], size), min(x.shape[-1], size)
    return x if (height, width) == x.shape[-2:] else functional.adaptive_avg_pool2d(x, (height, width))


def luma(x: Tensor) -> Tensor:
    """Weighted sum of the channels, [B, H, W]."""
    return sum(weight * x[:, i] for i, weight in enumerate(LUMA))  # pyright: ignore[reportReturnType]


def saturation(x: Tensor) -> Tensor:
    """HSV saturation [B], (max - min) / max over a pixel's channels, mean over pixels, in [0, 1]; 0 for black."""
    high, low = x.amax(1), x.amin(1)
    return ((high - low) / high.where(high != 0, 1.0)).mean((1, 2))


def brightness(x: Tensor) -> Tensor:
    """Mean over pixels and channels, in [0, 1]."""
    return x.mean((1, 2, 3))


def contrast(x: Tensor) -> Tensor:
    """Standard deviation of the luma over pixels, in [0, 0.5]."""
    return luma(x).flatten(1).std(1, correction=0)


def sharpness(x: Tensor) -> Tensor:
    """Root mean square of the luma's 4-neighbour Laplacian, edges repeated, in [0, 4]."""
    padded = functional.pad(luma(x)[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    centre = padded[:, 1:-1, 1:-1]
    around = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    power = (around - 4 * centre).square().mean((1, 2))
    flat = power == 0  # where the root has no gradient
    return torch.where(flat, power, power.where(~flat, 1.0).sqrt())


def clipped_share(x: Tensor) -> Tensor:
    """Share [B] of channel values that 8 bits store as 0 or 255; without gradient."""
    share = ((x - 0.5).abs() > 0.5 - 0.5 / 255).to(x.dtype).mean((1, 2, 3))
    return share + 0.0 * x.mean((1, 2, 3))  # a comparison hides non-finite values
