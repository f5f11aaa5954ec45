"""Pictures that tools take and give: parts of them at full size."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from flowrl.contracts import Context, ModelsFault
from flowrl.media.pictures import as_image

SEEN = "pictures.regions"  # of a conversation's state: where the pictures that zooms gave lie in those of the prompt
Box = tuple[float, float, float, float]


class Region(NamedTuple):
    """A part of a picture of the prompt: its number among them, from 0, and left, top, right, bottom in its pixels."""

    source: int
    box: Box


def region_of(context: Context, number: int) -> Region:
    """Where the picture of that number, from 1 in the order in which the model saw them, lies.

    A picture that is no part of another is its own source. Raises ModelsFault where there is no such picture.
    """
    count = len(context.pictures)
    if not 1 <= number <= count:
        has = f"pictures 1 to {count}" if count > 1 else f"{'one picture' if count else 'no picture'}"
        raise ModelsFault(f"there is no picture {number}; the conversation has {has} so far")
    known: dict[int, Region] = context.state.get(SEEN, {})
    if number - 1 in known:
        return known[number - 1]
    width, height = as_image(context.pictures[number - 1]).size
    return Region(number - 1, (0.0, 0.0, float(width), float(height)))


def remember(context: Context, region: Region) -> None:
    """Notes that the next picture that the model is shown is this region."""
    context.state.setdefault(SEEN, {})[len(context.pictures)] = region


def cut(context: Context, region: Region) -> Image.Image:
    """The pixels of a region, of the picture that it lies in."""
    left, top, right, bottom = region.box
    box = (math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))
    return as_image(context.pictures[region.source]).crop(box)


def resized(image: Image.Image, factor: float, most: int | None) -> Image.Image:
    """An image `factor` times as large on each side, and no larger than `most` pixels in all."""
    width, height = image.size
    if most is not None:
        factor = min(factor, math.sqrt(most / (width * height)))
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def widened(box: Sequence[float], within: Box, least: float) -> Box:
    """A box that is at least `least` pixels on each side, about the same centre where the picture allows it."""
    sides = []
    for low, high, start, end in zip(box[:2], box[2:], within[:2], within[2:], strict=True):
        size = min(max(high - low, least), end - start)
        begin = min(max((low + high - size) / 2, start), end - size)
        sides.append((begin, begin + size))
    (left, right), (top, bottom) = sides
    return (left, top, right, bottom)
