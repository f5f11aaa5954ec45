"""How judges are tested: pictures of held-out compositions, and what the generator draws for held-out captions."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowrl.worlds.shapes.captions import Scene, draw, heldout_scenes, split
from flowrl.worlds.shapes.checker import score, score_batch
from flowrl.worlds.shapes.judges.lookalikes import lookalikes
from flowrl.worlds.shapes.judges.pool import sample
from flowrl.worlds.shapes.pretrain import KIND_WEIGHTS
from flowrl.worlds.shapes.render import render

WRONG = 4  # captions that each picture nearly shows


@dataclass(frozen=True)
class Question:
    """A held-out scene, its render [3, 32, 32], and scenes that the checker says it does not show."""

    scene: Scene
    image: Tensor
    wrong: list[Scene]


def renders(seed: int = 11, *, heldout: bool = True) -> list[Question]:
    """A question for each of the 320 held-out scenes, or for as many of training's."""
    rng = random.Random(seed)
    found = []
    for scene in chosen(rng, heldout):
        image = render([scene], rng)[0]
        pixels = image.permute(1, 2, 0).numpy()
        near = [w for w in lookalikes(scene, 2 * WRONG, rng, seen=not heldout) if score(pixels, w)[0] == 0]
        found.append(Question(scene, image, near[:WRONG]))
    return found


@dataclass(frozen=True)
class Drawn:
    """Pictures [N, 3, 32, 32] that the generator drew for scenes, and the checker's strict and graded scores [N]."""

    images: Tensor
    scenes: list[Scene]
    strict: Tensor
    graded: Tensor


def generated(pipe: Any, seed: int = 12, *, heldout: bool = True) -> Drawn:
    """Two pictures for each of the 320 held-out scenes, or for as many of training's, by 4, 6 and 10 steps."""
    scenes = chosen(random.Random(seed), heldout) * 2
    images = sample(pipe, scenes, seed)
    return Drawn(images, scenes, *score_batch(images, scenes))


def chosen(rng: random.Random, heldout: bool) -> list[Scene]:
    """The 320 held-out scenes, or as many of training's."""
    return heldout_scenes() if heldout else draw(split()[0], 320, rng, KIND_WEIGHTS)


def picked(right: Tensor, wrong: list[Tensor]) -> Tensor:
    """1 where the right caption's score [N] is above those of all the picture's wrong ones, float32 [N]."""
    return torch.tensor([float((r > w).all()) for r, w in zip(right, wrong, strict=True)])


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Share of (right, wrong) pairs in which the right one scores higher, ties counted half."""
    right, wrong = scores[labels > 0.5], scores[labels <= 0.5]
    difference = right[:, None] - wrong[None]
    return ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation of two tensors [N]."""
    return torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1].item()


def calibration_error(scores: Tensor, labels: Tensor, bins: int = 10) -> float:
    """Expected calibration error (arXiv:1706.04599): mean gap of probability and share of right ones in equal bins."""
    place = (scores * bins).long().clamp(0, bins - 1)
    gaps = [(scores[place == b].mean() - labels[place == b].mean()).abs() * (place == b).sum() for b in place.unique()]
    return float(torch.stack(gaps).sum() / len(scores))
