"""Pictures inside the page: small, as data URIs."""

import base64
import io
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

PIXEL_ART = 64  # pixels; pictures no larger stay as they are, and browsers enlarge them without smoothing
QUALITIES = ((256, 82), (208, 75), (160, 68), (112, 60), (80, 45))  # longest side, WebP quality: large first


class Thumbnail(NamedTuple):
    """A data URI, the picture's shape on the page, and whether it is to be enlarged pixel by pixel."""

    uri: str
    width: int
    height: int
    pixelated: bool


def thumbnail(folder: Path, name: str, side: int, quality: int) -> Thumbnail | None:
    """The picture `name` of a run's folder, its longest side at most `side`; None where there is none to be read."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        return None
    return _encode(path, path.stat().st_mtime_ns, side, quality)


@lru_cache(maxsize=2048)
def _encode(path: Path, _modified: int, side: int, quality: int) -> Thumbnail | None:
    """Kept between calls: a run writes its page after each evaluation, and most pictures are those of before."""
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, ValueError, SyntaxError):
        return None  # damaged or half written; the page shows a placeholder
    return encoded(picture, side, quality)


def encoded(picture: Image.Image, side: int, quality: int) -> Thumbnail:
    """An RGB picture, its longest side at most `side`; one of PIXEL_ART or less stays as it is. It may be resized."""
    small = max(picture.size) <= PIXEL_ART
    file = io.BytesIO()
    if small:
        picture.save(file, "PNG", optimize=True)
    else:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
        picture.save(file, "WEBP", quality=quality, method=3)
    kind = "png" if small else "webp"
    uri = f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
    return Thumbnail(uri, picture.width, picture.height, small)
