"""The shapes world's checker as a reward: does the picture show exactly what its caption asks for?

It needs no weights and cannot be argued with: `flowrl.worlds.shapes.checker` finds the objects in a picture and
compares them with the scene in the prompt's meta.
"""

import torch
from torch import Tensor

from flowrl.contracts import Samples
from flowrl.pictures import value_faults
from flowrl.worlds.shapes.captions import Scene
from flowrl.worlds.shapes.checker import score_batch
from reward_models.parts.inputs import digest


def shapes(samples: Samples, *, strict: float = 0.5) -> Tensor:
    """strict * (exact match, 0 or 1) + (1 - strict) * (partial credit, 0..1) of each picture, float32 [B] in [0, 1]."""
    if not 0 <= strict <= 1:
        raise ValueError(f"strict={strict}: accepted is 0 (partial credit only) to 1 (exact match only)")
    exact, graded = _scores(samples)
    return strict * exact + (1 - strict) * graded


def shapes_strict(samples: Samples) -> Tensor:
    """1 where a picture shows exactly the objects and the relation asked for, else 0. The accuracy a report quotes."""
    return _scores(samples)[0].clone()


# A witness beside the trained reward scores the same pictures: the last result is kept, known by their content. Each
# reward has copies of its own, so that it is not the same tensor.
_last: tuple[bytes, list[Scene], tuple[Tensor, Tensor]] | None = None


def _scores(samples: Samples) -> tuple[Tensor, Tensor]:
    """(strict, graded), float32 [B] each; NaN where a picture is none: a value that is not finite or not in [0, 1]."""
    global _last
    if samples.images is None:
        raise ValueError("the shapes reward scores images; this model gives none")
    scenes = [_scene(prompt.meta, prompt.text) for prompt in samples.prompts]
    known, key = _last, digest(samples.images)
    if known is not None and known[:2] == (key, scenes):
        return known[2]
    wrong = value_faults(samples.images)
    good = [i for i in range(len(scenes)) if i not in wrong]
    exact, graded = (torch.full((len(scenes),), torch.nan) for _ in range(2))
    if good:
        exact[good], graded[good] = score_batch(samples.images[good], [scenes[i] for i in good])
    _last = key, scenes, (exact, graded)
    return exact, graded


def _scene(meta: dict, text: str) -> Scene:
    try:
        return Scene.from_meta(meta)
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"prompt {text!r} carries no scene: its meta must hold kind and objects, as shapes/train and "
            "shapes/heldout do"
        ) from None
