"""Pictures: which tensors are valid ones, and grids of samples as PNG."""

import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

MIN_TILE = 96  # pixels; smaller samples are enlarged without smoothing
RANGE_TOLERANCE = 1e-3  # beyond [0, 1]: rounding in half precision
LARGEST_SIDE = 2**14  # pixels
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def picture_fault(pixels: Tensor) -> str | None:
    """What is wrong with images float [B, 3, H, W] or video float [B, T, 3, H, W] in [0, 1], as half a sentence; None
    if they are valid.
    """
    return shape_fault(pixels) or next(iter(value_faults(pixels).values()), None)


def shape_fault(pixels: Tensor) -> str | None:
    """What is wrong with the shape, size or dtype of pixels [B, 3, H, W] or [B, T, 3, H, W]; None if nothing is."""
    shape = tuple(pixels.shape)
    if pixels.dim() not in (4, 5) or pixels.shape[-3] != 3 or 0 in shape:
        return f"pictures of shape {shape}; accepted: images [B, 3, H, W] or video [B, T, 3, H, W]"
    if max(shape[-2:]) > LARGEST_SIDE:
        return f"pictures of shape {shape}; accepted: at most {LARGEST_SIDE} pixels a side"
    if pixels.dtype not in FLOATS:
        return f"pictures of {pixels.dtype}; accepted: floating point in [0, 1]"
    return None


def value_faults(pixels: Tensor) -> dict[int, str]:
    """Position -> what is wrong with the values of that sample, as half a sentence, for pixels float [B, ...]."""
    if len(pixels) and bool(is_in_range(*(end.float() for end in pixels.detach().aminmax()))):
        return {}  # one look at all of them, which mostly is enough
    low, high = value_range(pixels)
    bad = ~is_in_range(low, high)
    return {i: _value_fault(float(low[i]), float(high[i])) for i in bad.nonzero().flatten().tolist()}


def value_range(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value of each sample of pixels [B, ...], float32 [B] on the CPU; NaN where one is NaN.

    One sample at a time: aminmax along an axis takes fifteen times as long on a CPU.
    """
    if not len(pixels):
        return torch.zeros(0), torch.zeros(0)
    low, high = torch.stack([torch.stack(one.aminmax()) for one in pixels.detach()]).float().cpu().unbind(1)
    return low, high


def is_in_range(low: Tensor, high: Tensor) -> Tensor:
    """Whether low and high, float of one shape, lie in [0, 1] up to rounding; bool of that shape, False for NaN."""
    return (low >= -RANGE_TOLERANCE) & (high <= 1 + RANGE_TOLERANCE)


def _value_fault(low: float, high: float) -> str:
    if low - low != 0 or high - high != 0:  # NaN or infinite
        return "pictures with values that are not finite"
    return f"pictures with values from {low:.4g} to {high:.4g}; accepted: 0 to 1"


def picture_grid(pictures: Tensor, *, columns: int | None = None, gap: int = 2) -> Image.Image:
    """A sheet of pictures float [N, 3, H, W] in [0, 1] on white, row by row; columns: per row (None: about square)."""
    number, _, height, width = pictures.shape
    columns = columns or max(1, round(number**0.5 * 1.3))
    rows = -(-number // columns)
    scale = max(1, -(-MIN_TILE // width))
    tile_w, tile_h = width * scale, height * scale
    sheet = Image.new("RGB", (columns * (tile_w + gap) + gap, rows * (tile_h + gap) + gap), "white")
    for i, picture in enumerate(pictures):
        tile = to_pil(picture).resize((tile_w, tile_h), Image.Resampling.NEAREST)
        sheet.paste(tile, (gap + i % columns * (tile_w + gap), gap + i // columns * (tile_h + gap)))
    return sheet


def save_grid(pictures: Tensor, path: Path, *, columns: int | None = None) -> None:
    """Writes a sheet of pictures float [N, 3, H, W] in [0, 1] as PNG, and creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture_grid(pictures, columns=columns).save(path)


def to_pil(picture: Tensor) -> Image.Image:
    """A picture float [3, H, W] in [0, 1] as a PIL image."""
    pixels = (picture.detach().float().clamp(0, 1).cpu() * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def as_image(picture: Any) -> Image.Image:
    """A picture as an RGB image. Takes an image, a path, or float [3, H, W] in [0, 1]; raises TypeError otherwise."""
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    if isinstance(picture, str | os.PathLike):
        with Image.open(picture) as opened:
            return opened.convert("RGB")
    if isinstance(picture, Tensor) and picture.ndim == 3:
        return to_pil(picture)
    raise TypeError(f"a picture is an image, a path or float [3, H, W], not a {type(picture).__name__}")


def save_picture(picture: Tensor, path: Path) -> None:
    """Writes one picture float [3, H, W] in [0, 1] as PNG at its own size, and creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    to_pil(picture).save(path)
