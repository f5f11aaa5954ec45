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
    """The picture `name` of a run's folder, its longest side at most `side`; None if it cannot be read."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        return None
    return _encode_file(path, path.stat().st_mtime_ns, side, quality)


@lru_cache(maxsize=2048)
def _encode_file(path: Path, _modified: int, side: int, quality: int) -> Thumbnail | None:
    """Cached: a run writes its page after each evaluation, and most pictures are the same as before."""
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, ValueError, SyntaxError):
        return None  # damaged or half written; the page shows a placeholder
    return encode_thumbnail(picture, side, quality)


def encode_thumbnail(picture: Image.Image, side: int, quality: int) -> Thumbnail:
    """An RGB picture, reduced in place to a longest side of `side`; one of at most PIXEL_ART pixels stays as it is."""
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
