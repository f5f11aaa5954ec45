"""Draws scenes of the shapes world: anti-aliased silhouettes on a light background, vectorised over the batch."""

import random

import torch
from torch import Tensor

from flowrl.worlds.shapes.captions import COLORS, SHAPES, Scene

SIZE = 32  # pixels; all lengths below are in pixels of such a canvas
MAX_OBJECTS = 4
SQUARE_HALF = 0.92  # half side of a square of radius 1
TRIANGLE_HALF = 0.95  # half height of a triangle of radius 1, whose base is 2 wide
_RADII = {1: (5.0, 9.0), 2: (4.0, 6.2), 3: (3.6, 5.0), 4: (3.4, 4.4)}  # range of radii by number of objects
_GAP = 1.6  # free pixels between two bounding boxes


def render(scenes: list[Scene], rng: random.Random) -> Tensor:
    """Pictures of the scenes, float32 [B, 3, 32, 32] in [0, 1]; places, sizes, tints and background come from `rng`."""
    shape, center, radius, color = layout(scenes, rng)
    grid = torch.arange(SIZE) + 0.5
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    distance = silhouette(
        shape[..., None, None], x - center[..., 0, None, None], y - center[..., 1, None, None], radius
    )
    alpha = (0.5 - distance).clamp(0, 1)  # [B, MAX_OBJECTS, 32, 32]
    tone = [rng.uniform(0.86, 1.0) for _ in scenes]
    background = torch.tensor([[t + rng.uniform(-0.03, 0.03) for _ in range(3)] for t in tone]).clamp(0, 1)
    image = background[:, :, None, None].expand(-1, 3, SIZE, SIZE)
    for k in range(MAX_OBJECTS):
        cover = alpha[:, k : k + 1]
        image = image * (1 - cover) + color[:, k, :, None, None] * cover
    return image.contiguous()


def silhouette(shape: Tensor, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Signed distance in pixels (negative inside) to circle 0, square 1 or upright triangle 2 around the origin.

    shape, x, y, radius: broadcastable to the result [..., H, W].
    """
    circle = (x * x + y * y).sqrt() - radius
    square = torch.maximum(x.abs(), y.abs()) - SQUARE_HALF * radius
    slope = 2 * TRIANGLE_HALF  # height over half base
    norm = (slope * slope + 1) ** 0.5
    side = (slope * x.abs() - (y + TRIANGLE_HALF * radius)) / norm
    triangle = torch.maximum(side, y - TRIANGLE_HALF * radius)
    return torch.where(shape == 0, circle, torch.where(shape == 1, square, triangle))


def layout(scenes: list[Scene], rng: random.Random) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shape index [B, M], centre [B, M, 2], radius [B, M, 1, 1], colour [B, M, 3]; absent objects are off canvas."""
    shape = torch.zeros(len(scenes), MAX_OBJECTS)
    center = torch.full((len(scenes), MAX_OBJECTS, 2), -100.0)
    radius = torch.ones(len(scenes), MAX_OBJECTS, 1, 1)
    color = torch.zeros(len(scenes), MAX_OBJECTS, 3)
    for i, scene in enumerate(scenes):
        for k, ((name, form), (cx, cy, r)) in enumerate(zip(scene.objects, _place(scene, rng), strict=True)):
            shape[i, k], radius[i, k] = SHAPES.index(form), r
            center[i, k] = torch.tensor([cx, cy])
            color[i, k] = torch.tensor([c + rng.uniform(-0.03, 0.03) for c in COLORS[name]])
    return shape, center, radius, color.clamp(0, 1)


def _place(scene: Scene, rng: random.Random) -> list[tuple[float, float, float]]:
    """(x, y, radius) of each object: inside the canvas, apart from one another, and in the relation asked for."""
    number = len(scene.objects)
    while True:
        radii = [rng.uniform(*_RADII[number]) for _ in range(number)]
        if number > 2:  # a counted set is of about one size
            radii = [radii[0] * rng.uniform(0.92, 1.08) for _ in radii]
        placed: list[tuple[float, float, float]] = []
        for r in radii:
            spot = _free_spot(r, placed, rng)
            if spot is None:
                break
            placed.append(spot)
        if len(placed) == number and (scene.relation is None or holds(scene.relation, placed[0], placed[1])):
            return placed


def _free_spot(r: float, placed: list, rng: random.Random, tries: int = 30) -> tuple[float, float, float] | None:
    margin = r + 1.0
    for _ in range(tries):
        x, y = rng.uniform(margin, SIZE - margin), rng.uniform(margin, SIZE - margin)
        if all(max(abs(x - a), abs(y - b)) > r + q + _GAP for a, b, q in placed):
            return x, y, r
    return None


def holds(relation: str, first: tuple, second: tuple, slack: float = 1.0) -> bool:
    """Whether `first` (x, y, ...) lies to `second` as said: the named direction exceeds `slack` times the other."""
    dx, dy = first[0] - second[0], first[1] - second[1]
    along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]
    across = abs(dy) if relation in ("left of", "right of") else abs(dx)
    return along > 0 and along > slack * across
