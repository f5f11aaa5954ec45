"""The shapes world's checker as a reward: does the picture show exactly what its caption asks for?

It needs no weights and cannot be argued with: `flowrl.worlds.shapes.checker` finds the objects in a picture and
compares them with the scene in the prompt's meta.
"""

import weakref

import torch
from torch import Tensor

from flowrl.contracts import Samples
from flowrl.worlds.shapes.captions import Scene
from flowrl.worlds.shapes.checker import score_batch


def shapes(samples: Samples, *, strict: float = 0.5) -> Tensor:
    """strict * (exact match, 0 or 1) + (1 - strict) * (partial credit, 0..1) of each picture, float32 [B] in [0, 1]."""
    if not 0 <= strict <= 1:
        raise ValueError(f"strict={strict}: accepted is 0 (partial credit only) to 1 (exact match only)")
    exact, graded = _scores(samples)
    return strict * exact + (1 - strict) * graded


def shapes_strict(samples: Samples) -> Tensor:
    """1 where a picture shows exactly the objects and the relation asked for, else 0. The accuracy a report quotes."""
    return _scores(samples)[0].clone()


# A witness beside the trained reward scores the same pictures: the last result is kept, known by the tensor that it
# was computed from and gone with it.
_last: tuple[weakref.ref, int, list[Scene], tuple[Tensor, Tensor]] | None = None


def _scores(samples: Samples) -> tuple[Tensor, Tensor]:
    """(strict, graded), float32 [B] each."""
    global _last
    if samples.images is None:
        raise ValueError("the shapes reward scores images; this model gives none")
    scenes = [_scene(prompt.meta, prompt.text) for prompt in samples.prompts]
    images = samples.images
    # Both inputs must be the same: _version rises when a tensor is written to in place.
    if _last is not None and _last[0]() is images and _last[1] == _version(images) and _last[2] == scenes:
        return _last[3]
    result = score_batch(images, scenes)
    _last = weakref.ref(images), _version(images), scenes, result
    return result


def _version(images: Tensor) -> int:
    return -1 if torch.is_inference(images) else images._version


def _scene(meta: dict, text: str) -> Scene:
    try:
        return Scene.from_meta(meta)
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"prompt {text!r} carries no scene: its meta must hold kind and objects, as shapes/train and "
            "shapes/heldout do"
        ) from None
