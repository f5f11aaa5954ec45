"""How far a picture is from the nearest drawing of a scene: a second opinion on the checker.

Nothing of the checker is used: no object is detected and no pixel is left out. The scene's own objects are placed on
the picture one after the other, each where it removes the most squared error: by a matched filter over places and radii
and a bounded search of shrinking steps from there; two objects of a relation are placed only where it holds.
The difference that remains counts at every pixel: background, insides and edges.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from flowrl.worlds.shapes.captions import COLORS, SHAPES, Scene
from flowrl.worlds.shapes.render import MAX_OBJECTS, SIZE, holds, silhouette

STRIDE = 2  # pixels between two places that the filter tries
RADII = tuple(3.25 + 0.75 * i for i in range(8))  # pixels; the world draws 3.4 to 9
RADIUS_RANGE = (3.0, 9.5)
STEPS = (1.0, 0.5, 0.5, 0.25, 0.12)  # pixels, of the search around the filter's best
TINT = 0.05  # how far a colour may lie from the palette's; the world draws up to 0.03
DARKEST = 0.8  # of a background; the world draws 0.83 and up
_REACH = 10  # pixels from the centre of a filter to its edge
_PLACES = torch.arange(0, SIZE, STRIDE) + 0.5


def residuals(images: Tensor, scenes: list[Scene]) -> Tensor:
    """Mean absolute difference to the nearest drawing of each scene, float32 [B] in [0, 1]: 0 is a perfect picture.

    images: float [B, 3, H, W] in [0, 1]; other sizes are resized to 32 x 32. The search is approximate: of the world's
    own renders it leaves about 0.002.
    """
    pixels = images.detach().float().cpu()
    if pixels.shape[-2:] != (SIZE, SIZE):
        pixels = functional.interpolate(pixels, size=(SIZE, SIZE), mode="bilinear", antialias=True)
    background = pixels.flatten(2).median(-1).values.clamp(DARKEST, 1)[..., None, None]
    drawn, free = background.expand_as(pixels).clone(), torch.ones(len(scenes), SIZE, SIZE)
    places = torch.zeros(len(scenes), 3)  # x, y, radius of each scene's object before this one
    for k in range(MAX_OBJECTS):
        rows = [i for i, scene in enumerate(scenes) if len(scene.objects) > k]
        if not rows:
            break
        shape, color = _object([scenes[i] for i in rows], k)
        gains = _filter_gains(_closeness(pixels[rows], background[rows], color, free[rows]), shape)
        tied = [n for n, i in enumerate(rows) if scenes[i].relation is not None]
        if tied:
            at = [rows[n] for n in tied]
            ties = [scenes[i] for i in at]
            after = _second_gains(pixels[at], background[at], ties) if k == 0 else None
            gains[tied] = _gains_under_relation(gains[tied], [str(s.relation) for s in ties], places[at], after)
        agreement, strength = _agreement(pixels[rows], background[rows], color, free[rows])
        places[rows] = _refine(_best(gains), agreement, strength, shape)
        cover = _cover(places[rows], shape)
        drawn[rows] = drawn[rows].lerp(_tint(color, pixels[rows], cover), cover[:, None])
        free[rows] = free[rows] * (1 - cover)
    return (pixels - drawn).abs().mean((1, 2, 3))


def _object(scenes: list[Scene], k: int) -> tuple[Tensor, Tensor]:
    """Shape index [N] and colour [N, 3, 1, 1] of the k-th object of each scene."""
    shape = torch.tensor([SHAPES.index(s.objects[k][1]) for s in scenes])
    return shape, torch.tensor([COLORS[s.objects[k][0]] for s in scenes])[..., None, None]


def _closeness(pixels: Tensor, background: Tensor, color: Tensor, free: Tensor) -> Tensor:
    """How much nearer each pixel is to the colour than half-way from the background, [N, H, W].

    Positive there and negative on the background; black is no better a red than red itself, as it would be by the
    squared error that a red object takes away.
    """
    strength = ((color - background) ** 2).sum(1)
    close = strength / 2 - ((pixels - color) ** 2).sum(1)
    return close * free - (1 - free) * strength


def _agreement(pixels: Tensor, background: Tensor, color: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """What each pixel says for the colour, [N, H, W], and what a pixel of that colour on the background says, [N].

    An object of cover a [H, W] takes sum(2 a agreement - a^2 strength) from the squared error. What an earlier object
    lies on speaks against a second one there.
    """
    toward = color - background
    strength = (toward * toward).sum((1, 2, 3))
    agreement = ((pixels - background) * toward).sum(1)
    return agreement * free - (1 - free) * strength[:, None, None], strength


@cache
def _filters() -> Tensor:
    """Cover of every shape at every radius around the middle of a pixel, [shapes, radii, 1, side, side]."""
    grid = torch.arange(-_REACH, _REACH + 1).float()
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    radius = torch.tensor(RADII)[:, None, None]
    bank = [(0.5 - silhouette(torch.tensor(i), x, y, radius)).clamp(0, 1) for i in range(len(SHAPES))]
    return torch.stack(bank)[:, :, None]


def _filter_gains(closeness: Tensor, shape: Tensor) -> Tensor:
    """Closeness summed over each object, [N, radii, places, places], by its radius and its place (y, x)."""
    gains = torch.empty(len(shape), len(RADII), len(_PLACES), len(_PLACES))
    for i in shape.unique().tolist():
        rows = shape == i
        gains[rows] = functional.conv2d(closeness[rows][:, None], _filters()[i], stride=STRIDE, padding=_REACH)
    return gains


def _second_gains(pixels: Tensor, background: Tensor, scenes: list[Scene]) -> Tensor:
    """The gains [N, places^2] of each scene's second object at its best radius."""
    shape, color = _object(scenes, 1)
    closeness = _closeness(pixels, background, color, torch.ones(len(scenes), SIZE, SIZE))
    return _filter_gains(closeness, shape).amax(1).flatten(1)


def _gains_under_relation(gains: Tensor, relations: list[str], first: Tensor, second: Tensor | None) -> Tensor:
    """Gains [N, radii, places, places] where a relation counts.

    Of the first object, given the second's gains: with the best that the second can then have. Of the second, given
    the first's place: only where the relation holds.
    """
    allowed = torch.stack([_relation_table(relation) for relation in relations])  # [N, places^2, places^2]
    if second is not None:
        best = torch.where(allowed, second[:, None], -1e6).amax(2)
        return gains + best.reshape(len(best), 1, *gains.shape[2:])
    column, row = (first[:, :2] / STRIDE).long().clamp(0, len(_PLACES) - 1).unbind(1)
    open_to = allowed[torch.arange(len(first)), row * len(_PLACES) + column]
    return torch.where(open_to.reshape(len(first), 1, *gains.shape[2:]), gains, -1e6)


@cache
def _relation_table(relation: str) -> Tensor:
    """Whether an object at one place is so to another at a second, bool [places^2, places^2]."""
    spots = [(float(x), float(y)) for y in _PLACES for x in _PLACES]
    return torch.tensor([[holds(relation, a, b) for b in spots] for a in spots])


def _best(gains: Tensor) -> Tensor:
    """x, y, radius [N, 3] of the largest gain."""
    at = gains.flatten(1).argmax(1)
    row, column = at // len(_PLACES) % len(_PLACES), at % len(_PLACES)
    return torch.stack([_PLACES[column], _PLACES[row], torch.tensor(RADII)[at // len(_PLACES) ** 2]], 1)


def _refine(place: Tensor, agreement: Tensor, strength: Tensor, shape: Tensor) -> Tensor:
    """The best place and radius [N, 3] near the given: of each step up or down in x, y and radius, what gains most."""
    moves = torch.cat([torch.zeros(1, 3), torch.eye(3), -torch.eye(3)])  # [7, 3]
    for step in STEPS:
        tried = place[:, None] + step * moves  # [N, 7, 3]
        tried[..., 2].clamp_(*RADIUS_RANGE)
        cover = _cover(tried, shape[:, None])
        gain = (cover * (2 * agreement[:, None] - cover * strength[:, None, None, None])).sum((2, 3))
        place = tried[torch.arange(len(place)), gain.argmax(1)]
    return place


def _cover(place: Tensor, shape: Tensor) -> Tensor:
    """Cover [..., H, W] of objects at x, y, radius [..., 3]."""
    grid = torch.arange(SIZE) + 0.5
    x, y, radius = place[..., None, None].unbind(-3)
    distance = silhouette(shape[..., None, None], grid - x, grid[:, None] - y, radius)
    return (0.5 - distance).clamp(0, 1)


def _tint(color: Tensor, pixels: Tensor, cover: Tensor) -> Tensor:
    """The colour [N, 3, 1, 1] moved by up to TINT towards the mean of the pixels that its object covers."""
    weight = cover[:, None]
    seen = (pixels * weight).sum((2, 3), keepdim=True) / weight.sum((2, 3), keepdim=True).clamp(min=1)
    return color + (seen - color).clamp(-TINT, TINT)
