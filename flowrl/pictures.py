"""Pictures for people: grids of samples as PNG."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

MIN_TILE = 96  # pixels; smaller samples are enlarged without smoothing


def grid(pictures: Tensor, *, columns: int | None = None, gap: int = 2) -> Image.Image:
    """A sheet of pictures [N, 3, H, W] in [0, 1], row by row, on white; `columns` a row (None: about square)."""
    number, _, height, width = pictures.shape
    columns = columns or max(1, round(number**0.5 * 1.3))
    rows = -(-number // columns)
    scale = max(1, -(-MIN_TILE // width))
    tile_w, tile_h = width * scale, height * scale
    sheet = Image.new("RGB", (columns * (tile_w + gap) + gap, rows * (tile_h + gap) + gap), "white")
    for i, picture in enumerate(pictures):
        tile = image(picture).resize((tile_w, tile_h), Image.Resampling.NEAREST)
        sheet.paste(tile, (gap + i % columns * (tile_w + gap), gap + i // columns * (tile_h + gap)))
    return sheet


def save_grid(pictures: Tensor, path: Path, *, columns: int | None = None) -> None:
    """Writes the sheet as PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(pictures, columns=columns).save(path)


def image(picture: Tensor) -> Image.Image:
    """A picture [3, H, W] in [0, 1] for PIL."""
    pixels = (picture.detach().float().clamp(0, 1).cpu() * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def save_picture(picture: Tensor, path: Path) -> None:
    """Writes one picture [3, H, W] as PNG at its own size, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image(picture).save(path)
