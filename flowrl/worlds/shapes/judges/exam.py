"""How judges are tested: on renders of held-out compositions, and on pictures generated for held-out captions."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.untyped import Pipeline
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
    """A question for each of the 320 held-out scenes, or for as many training scenes."""
    rng = random.Random(seed)
    questions = []
    for scene in exam_scenes(rng, heldout):
        image = render([scene], rng)[0]
        pixels = image.permute(1, 2, 0).numpy()
        near = [w for w in lookalikes(scene, 2 * WRONG, rng, seen=not heldout) if score(pixels, w)[0] == 0]
        questions.append(Question(scene, image, near[:WRONG]))
    return questions


@dataclass(frozen=True)
class GeneratedExam:
    """Pictures [N, 3, 32, 32] that the generator drew for scenes, and the checker's strict and graded scores [N]."""

    images: Tensor
    scenes: list[Scene]
    strict: Tensor
    graded: Tensor


def generate_exam(pipe: Pipeline, seed: int = 12, *, heldout: bool = True) -> GeneratedExam:
    """Two pictures for each of the 320 held-out scenes, or for as many training scenes, by 4, 6 and 10 steps."""
    scenes = exam_scenes(random.Random(seed), heldout) * 2
    images = sample(pipe, scenes, seed)
    return GeneratedExam(images, scenes, *score_batch(images, scenes))


def exam_scenes(rng: random.Random, heldout: bool) -> list[Scene]:
    """The 320 held-out scenes, or as many training scenes."""
    return heldout_scenes() if heldout else draw(split()[0], 320, rng, KIND_WEIGHTS)


def ranks_right_first(right: Tensor, wrong: list[Tensor]) -> Tensor:
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
    """Expected calibration error (arXiv:1706.04599) of scores [N] for labels [N], over equal bins of [0, 1].

    It is the mean gap between the score and the share of label 1 in a bin, weighted by the bin's size.
    """
    place = (scores * bins).long().clamp(0, bins - 1)
    gaps = [(scores[place == b].mean() - labels[place == b].mean()).abs() * (place == b).sum() for b in place.unique()]
    return float(torch.stack(gaps).sum() / len(scores))
