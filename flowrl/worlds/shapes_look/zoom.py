"""The tool of shapes-look: a quadrant of the picture that was shown last, at twice the size."""

from PIL import Image

from flowrl.worlds.shapes_look.scenes import CELL, QUADRANTS

Picture = Image.Image


def quadrant_of(picture: Picture, quadrant: str) -> Picture:
    """One quarter of a square picture, its pixels as they are.

    Raises ValueError, in words that the model may be told, for a quadrant that there is not and for a picture that the
    model has seen at its full resolution, 32 pixels of side.
    """
    if quadrant not in QUADRANTS:
        raise ValueError(f"no such quadrant; choose {', '.join(QUADRANTS)}")
    half = picture.width // 2
    if half < CELL:
        raise ValueError("this is as near as it gets")
    y, x = (half * part for part in divmod(QUADRANTS.index(quadrant), 2))
    return picture.crop((x, y, x + half, y + half))
