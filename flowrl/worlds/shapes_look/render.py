"""Draws scenes of shapes-look: anti-aliased silhouettes on a light background, each object in its own box."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from flowrl.worlds.shapes_look.scenes import CELL, COLORS, QUADRANTS, SIDE, Thing

PATCH = 8  # pixels of the side of a patch of the model's image tower
TINT = 0.03  # how far a channel of a colour may be from its table


def render(things: Sequence[Thing], seed: str) -> tuple[Tensor, Tensor]:
    """(picture uint8 [3, 128, 128], area float32 [objects, 16, 16] of each object in each square of 8 pixels).

    Tints and the background come from the seed.
    """
    rng = random.Random(seed)
    tone = rng.uniform(0.86, 1.0)
    background = torch.tensor([tone + rng.uniform(-TINT, TINT) for _ in range(3)]).clamp(0, 1)
    picture = background[:, None, None].repeat(1, SIDE, SIDE)
    area = torch.zeros(len(things), SIDE // PATCH, SIDE // PATCH)
    for k, thing in enumerate(things):
        color = torch.tensor([c + rng.uniform(-TINT, TINT) for c in COLORS[thing.color]]).clamp(0, 1)
        (x0, x1), (y0, y1) = (_span(at, thing.radius) for at in (thing.x, thing.y))
        y, x = torch.meshgrid(torch.arange(y0, y1) + 0.5, torch.arange(x0, x1) + 0.5, indexing="ij")
        cover = (0.5 - distance(thing.shape, x - thing.x, y - thing.y, thing.radius)).clamp(0, 1)
        box = picture[:, y0:y1, x0:x1]
        picture[:, y0:y1, x0:x1] = box * (1 - cover) + color[:, None, None] * cover
        whole = torch.zeros(1, SIDE, SIDE)
        whole[0, y0:y1, x0:x1] = cover
        area[k] = functional.avg_pool2d(whole, PATCH)[0] * PATCH**2
    return (picture * 255).round().to(torch.uint8), area


def _span(centre: float, radius: float) -> tuple[int, int]:
    """The pixels of one direction that an object may touch: no shape reaches further than 1.2 radii."""
    reach = 1.2 * radius + 2
    return max(0, int(centre - reach)), min(SIDE, int(centre + reach) + 1)


def distance(shape: str, x: Tensor, y: Tensor, r: float) -> Tensor:
    """Signed distance in pixels (negative inside) of points to a shape of radius r around the origin; as x and y."""
    if shape == "circle":
        return (x * x + y * y).sqrt() - r
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.9 * r
    if shape == "triangle":  # upright, 1.9 r high and 2 r wide
        norm = (1.9 * 1.9 + 1) ** 0.5
        return torch.maximum((1.9 * x.abs() - (y + 0.95 * r)) / norm, y - 0.95 * r)
    if shape == "diamond":
        return (x.abs() + y.abs() - 1.2 * r) / 2**0.5
    if shape == "ring":
        return ((x * x + y * y).sqrt() - 0.72 * r).abs() - 0.28 * r
    bar = 0.3 * r  # half the width of a bar of the cross
    return torch.minimum(
        torch.maximum(x.abs() - bar, y.abs() - r),
        torch.maximum(y.abs() - bar, x.abs() - r),
    )


def part(picture: Tensor, quadrant: str) -> Tensor:
    """The quadrant of a square picture [..., S, S]: [..., S/2, S/2]; also of a map over it."""
    half, at = picture.shape[-1] // 2, QUADRANTS.index(quadrant)
    y, x = at // 2 * half, at % 2 * half
    return picture[..., y : y + half, x : x + half]


def shrink(picture: Tensor) -> Tensor:
    """What the model sees of uint8 pictures [..., 3, S, S], as its processor: float32 [..., 3, 32, 32] in [0, 1]."""
    if picture.shape[-1] == CELL:
        return picture.float() / 255
    flat = picture.reshape(-1, *picture.shape[-3:]).float()
    small = functional.interpolate(flat, (CELL, CELL), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).view(*picture.shape[:-2], CELL, CELL) / 255
