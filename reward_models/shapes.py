"""The shapes world's checker as a reward: does the picture show exactly what its caption asks for?

It needs no weights: `flowrl.worlds.shapes.checker` finds the objects in a picture and compares them with the scene in
the prompt's meta. `shapes_residual` measures the same by other means: it detects nothing, but places the objects of the
scene on the picture and measures what is left, so that a picture that fools the checker does not fool it as well.
"""

import torch
from torch import Tensor

from flowrl.contracts import Samples
from flowrl.media.pictures import value_faults
from flowrl.worlds.shapes.captions import Scene
from flowrl.worlds.shapes.checker import score_batch
from flowrl.worlds.shapes.residual import residuals
from reward_models.parts.inputs import digest


def shapes(samples: Samples, *, strict: float = 0.5) -> Tensor:
    """strict * (exact match, 0 or 1) + (1 - strict) * (partial credit, 0..1) of each picture, float32 [B] in [0, 1]."""
    if not 0 <= strict <= 1:
        raise ValueError(f"strict={strict}: accepted is 0 (partial credit only) to 1 (exact match only)")
    exact, graded = _scores(samples)
    return strict * exact + (1 - strict) * graded


def shapes_strict(samples: Samples) -> Tensor:
    """1 if a picture shows exactly the requested objects and relation, else 0; float32 [B]. A report's accuracy."""
    return _scores(samples)[0].clone()


def shapes_residual(samples: Samples) -> Tensor:
    """Minus the mean absolute difference of each picture to the nearest drawing of its scene, float32 [B] in [-1, 0].

    About -0.007 for a render of the scene, -0.06 for one of another scene, -0.3 for noise; NaN for invalid pictures.
    A witness (weight 0) independent of the checker's detector; its search is in `flowrl.worlds.shapes.residual`.
    """
    images, scenes, good = _inputs(samples)
    scores = torch.full((len(scenes),), torch.nan)
    if good:
        scores[good] = -residuals(images[good], [scenes[i] for i in good])
    return scores


# A witness next to the trained reward scores the same pictures: the last result is kept, keyed by their content. Each
# reward returns copies of its own, so that it is not the same tensor.
_last: tuple[bytes, list[Scene], tuple[Tensor, Tensor]] | None = None


def _scores(samples: Samples) -> tuple[Tensor, Tensor]:
    """(strict, graded), float32 [B] each; NaN for a picture with a value that is not finite or not in [0, 1]."""
    global _last
    images, scenes, good = _inputs(samples)
    known, key = _last, digest(images)
    if known is not None and known[:2] == (key, scenes):
        return known[2]
    exact, graded = (torch.full((len(scenes),), torch.nan) for _ in range(2))
    if good:
        exact[good], graded[good] = score_batch(images[good], [scenes[i] for i in good])
    _last = key, scenes, (exact, graded)
    return exact, graded


def _inputs(samples: Samples) -> tuple[Tensor, list[Scene], list[int]]:
    """The pictures, what each should show, and the rows with valid pixel values."""
    if samples.images is None:
        raise ValueError("the shapes reward scores images; this model gives none")
    scenes = [_scene(prompt.meta, prompt.text) for prompt in samples.prompts]
    wrong = value_faults(samples.images)
    return samples.images, scenes, [i for i in range(len(scenes)) if i not in wrong]


def _scene(meta: dict, text: str) -> Scene:
    try:
        return Scene.from_meta(meta)
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"prompt {text!r} has no scene: its meta must hold kind and objects, as shapes/train and shapes/heldout do"
        ) from None
