"""Scenes drawn once, of which views are taken in pretraining: the whole picture, its quadrants, and theirs."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from flowrl.worlds.shapes_look.render import part, render, shrink
from flowrl.worlds.shapes_look.scenes import COLORS, QUADRANTS, SHAPES, SIDE, Thing, draw

NOISE = 0.02  # standard deviation of what is added to the pixels that the model learns from
Path = tuple[str, ...]  # the quadrants that were zoomed into
PATHS: tuple[Path, ...] = (
    (),
    *((one,) for one in QUADRANTS),
    *((one, two) for one in QUADRANTS for two in QUADRANTS),
)


class Pool:
    """Pictures uint8 [N, 3, 128, 128], the area of each object in squares of 8 pixels [N, objects, 16, 16], and the
    objects' colours, shapes and whether they are small, int64 [N, objects]."""

    def __init__(self, name: str, number: int):
        rng = random.Random(name)
        self.scenes: list[tuple[Thing, ...]] = [draw(rng) for _ in range(number)]
        drawn = [render(things, f"{name}/{i}") for i, things in enumerate(self.scenes)]
        self.pictures = torch.stack([picture for picture, _ in drawn])
        self.area = torch.stack([area for _, area in drawn])
        self.color = self._table(lambda o: list(COLORS).index(o.color))
        self.shape = self._table(lambda o: SHAPES.index(o.shape))
        self.small = self._table(lambda o: o.size == "small")

    def _table(self, of) -> Tensor:
        return torch.tensor([[int(of(o)) for o in things] for things in self.scenes])

    def views(self, index: Tensor, path: Path) -> tuple[Tensor, Tensor]:
        """One view of the scenes `index` [B]: pixels [B, 3, 32, 32] in [0, 1], and the area of each object in its
        patches, in pixels of the view: [B, objects, 4, 4]."""
        pictures, area = self.pictures[index], self.area[index]
        for quadrant in path:
            pictures, area = part(pictures, quadrant), part(area, quadrant)
        scale = pictures.shape[-1] // (SIDE // 4)  # pixels of the picture a pixel of the view
        return shrink(pictures), functional.avg_pool2d(area, scale)

    def __len__(self) -> int:
        return len(self.scenes)


def paths_at(level: int) -> Sequence[Path]:
    """The views after this many zooms."""
    return [path for path in PATHS if len(path) == level]


def spoil(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """The pixels with a little noise."""
    return pixels + NOISE * torch.randn(pixels.shape, generator=generator)
