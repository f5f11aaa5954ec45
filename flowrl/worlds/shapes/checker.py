"""Scores a picture against a scene of the shapes world, without learned weights.

A pixel is explained as a mix of the background (median of the border) and one palette colour; connected pixels of
sufficient cover form an object; its shape is the ideal silhouette of equal area that overlaps it best. An object that
matches no silhouette well, or has no clear colour, is reported with shape "?" and can satisfy no caption.

An exact match takes more than the right objects: nearly all pixels must look as those objects on a light background
would. What is too faint, too small or of too odd a colour to be an object counts against it there.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from flowrl.worlds.shapes.captions import COLORS, SHAPES, Scene
from flowrl.worlds.shapes.render import TRIANGLE_HALF, holds

COVER = 0.5  # a pixel belongs to an object from this cover on
MIN_AREA = 8.0  # pixels; anything smaller is dust
MIN_OVERLAP = 0.8  # intersection over union with the ideal silhouette
MAX_ASPECT = 1.45
MAX_COLOR_ERROR = 0.35  # euclidean, in RGB of [0, 1]
MIN_PURITY = 0.7  # share of an object's pixels that vote for its colour
RELATION_SLACK = 0.8
PIXEL_ERROR = 0.2  # a pixel is off where a channel is further than this from what the objects found explain
MAX_OFF = 0.05  # share of the pixels that may be off; 0.0254 is the most on 1783 right pictures of shapes-flux
DARKEST = 0.75  # of a background; the world draws 0.83 and up

_NAMES = tuple(COLORS)
_PALETTE = np.array(list(COLORS.values()), dtype=np.float32)


@dataclass(frozen=True)
class DetectedObject:
    """An object in a picture: colour, shape ("?" if unclear), centre and area in pixels, overlap in [0, 1]."""

    color: str
    shape: str
    x: float
    y: float
    area: float
    overlap: float


def detect(image: np.ndarray) -> list[DetectedObject]:
    """The objects in one picture, float32 [H, W, 3] in [0, 1]."""
    cover, vote = _explain(image)
    core = np.zeros(cover.shape, dtype=np.int32)
    number = ndimage.label(cover > COVER, output=core)
    if number == 0:
        return []
    spread = np.where(core > 0, core, ndimage.grey_dilation(core, size=(3, 3)))  # soft edge pixels join their neighbour
    detected = []
    for i, box in enumerate(ndimage.find_objects(spread), start=1):
        weight = cover[box].clip(0, 1) * (spread[box] == i)
        if weight.sum() >= MIN_AREA:
            detected.append(_describe(image[box], cover[box], vote[box], core[box] == i, weight, box))
    return detected


def _explain(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cover [H, W] of the best palette colour over the background, and that colour's index [H, W]."""
    background = np.median(_border(image), axis=0)
    offset = image - background
    toward = _PALETTE - background  # [C, 3]
    length = (toward * toward).sum(1)
    alpha = ((offset @ toward.T) / length).clip(0, 1.05)  # [H, W, C]
    # |offset - alpha * toward|^2 expanded, which spares the [H, W, C, 3] intermediate
    residual = alpha * (alpha * length - 2 * (offset @ toward.T))
    vote = residual.argmin(-1)
    return np.take_along_axis(alpha, vote[..., None], -1)[..., 0], vote


def _border(image: np.ndarray) -> np.ndarray:
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])


def _describe(
    pixels: np.ndarray, cover: np.ndarray, vote: np.ndarray, core: np.ndarray, weight: np.ndarray, box: tuple
) -> DetectedObject:
    solid = core & (cover > 0.85)
    mean = pixels[solid if solid.sum() >= 4 else core].mean(0)
    error = np.sqrt(((_PALETTE - mean) ** 2).sum(1))
    color = int(error.argmin())
    purity = (vote[core] == color).mean()
    area = float(weight.sum())
    ys, xs = np.arange(box[0].start, box[0].stop) + 0.5, np.arange(box[1].start, box[1].stop) + 0.5
    x, y = float((weight.sum(0) * xs).sum() / area), float((weight.sum(1) * ys).sum() / area)
    width, height = np.sort(weight.sum(1))[-3:].max(), np.sort(weight.sum(0))[-3:].max()
    overlaps = _overlaps(xs[None] - x, ys[:, None] - y, area, weight)
    shape = int(np.argmax(overlaps))
    clear = (
        overlaps[shape] > MIN_OVERLAP
        and max(width, height) < MAX_ASPECT * min(width, height)
        and error[color] < MAX_COLOR_ERROR
        and purity > MIN_PURITY
    )
    return DetectedObject(_NAMES[color], SHAPES[shape] if clear else "?", x, y, area, float(overlaps[shape]))


def _overlaps(x: np.ndarray, y: np.ndarray, area: float, weight: np.ndarray) -> list[float]:
    """Soft intersection over union of `weight` with the circle, square and triangle of equal area and centroid."""
    ideals = [np.clip(0.5 - d, 0, 1) for d in _distances(x, y, area)]
    return [float(np.minimum(i, weight).sum() / np.maximum(i, weight).sum()) for i in ideals]


def _distances(x: np.ndarray, y: np.ndarray, area: float) -> tuple[np.ndarray, ...]:
    """Signed distances (negative inside) to the circle, square and triangle of that area with their centroid at 0."""
    slope = 2 * TRIANGLE_HALF
    r = np.sqrt(area / slope)  # triangle: area = base * height / 2 = 2 r * slope r / 2
    low = y + TRIANGLE_HALF * r / 3  # its centroid lies a third of the half height below the box centre
    return (
        np.sqrt(x * x + y * y) - np.sqrt(area / np.pi),
        np.maximum(np.abs(x), np.abs(y)) - np.sqrt(area) / 2,
        np.maximum((slope * np.abs(x) - (low + TRIANGLE_HALF * r)) / np.sqrt(slope**2 + 1), low - TRIANGLE_HALF * r),
    )


def unexplained_share(image: np.ndarray, detected: list[DetectedObject]) -> float:
    """Share of the pixels of [H, W, 3] that the detected objects, drawn as ideal silhouettes on a background, do not
    explain. Within a pixel of an edge, any mix of the two colours is explained."""
    background = np.median(_border(image), axis=0).clip(DARKEST, 1)
    low, high = (np.broadcast_to(background, image.shape).copy() for _ in range(2))
    y, x = np.arange(image.shape[0])[:, None] + 0.5, np.arange(image.shape[1]) + 0.5
    for each in detected:
        if each.shape == "?":
            continue
        distance = _distances(x - each.x, y - each.y, each.area)[SHAPES.index(each.shape)]
        color = _PALETTE[_NAMES.index(each.color)]
        inside, edge = distance < -1, np.abs(distance) <= 1
        low[inside] = high[inside] = color
        low[edge], high[edge] = np.minimum(background, color), np.maximum(background, color)
    wrong = np.maximum(low - image, image - high).max(-1) > PIXEL_ERROR
    return float(wrong.mean())


def score(image: np.ndarray, scene: Scene) -> tuple[float, float]:
    """(strict 0 or 1, graded 0..1) of one picture [H, W, 3]: exactly the objects, the relation and little
    else; partial credit.

    Graded: a requested object counts 1 if detected, 0.4 if only its colour or its shape matches; the sum is divided by
    the larger of the numbers requested and detected, so that extra objects cost. A relation has a weight of 0.4.
    """
    detected = detect(image)
    rest, missing = list(detected), []
    matched: list[DetectedObject] = []
    for color, shape in scene.objects:
        hit = next((f for f in rest if (f.color, f.shape) == (color, shape)), None)
        if hit is None:
            missing.append((color, shape))
        else:
            rest.remove(hit)
            matched.append(hit)
    credit = float(len(matched))
    for color, shape in missing:
        near = next((f for f in rest if f.color == color or f.shape == shape), None)
        if near is not None:
            rest.remove(near)
            credit += 0.4
    graded = credit / max(len(scene.objects), len(detected), 1)
    exact = not missing and len(detected) == len(scene.objects)
    exact = exact and unexplained_share(image, detected) <= MAX_OFF
    if scene.relation is None:
        return float(exact), graded
    related = not missing and holds(scene.relation, _xy(matched[0]), _xy(matched[1]), RELATION_SLACK)
    return float(exact and related), 0.6 * graded + 0.4 * related


def _xy(detected: DetectedObject) -> tuple[float, float]:
    return detected.x, detected.y


def score_batch(images: Tensor, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Strict and graded scores, float32 [B] each, of pictures [B, 3, H, W] in [0, 1]."""
    pixels = images.detach().float().clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    pairs = [score(p, s) for p, s in zip(pixels, scenes, strict=True)]
    table = torch.tensor(pairs, dtype=torch.float32).reshape(-1, 2)
    return table[:, 0], table[:, 1]
