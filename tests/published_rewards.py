"""Tiny checkpoints in the real file formats for the rewards that published recipes train, and how they are named.

OCR reads nothing in the pictures of random models and GenEval finds nothing: all samples of a group would tie. A test
trains file sizes in their place; their own tests show what they read and find.
"""

from pathlib import Path
from typing import Any

import hpsv3_support
import image_reward_support
import videoalign_support

from clip_support import Made
from flowrl.recipe.schema import Recipe

TIED = {"ocr", "geneval"}


def checkpoints(root: Path) -> dict[str, dict[str, Any]]:
    """Arguments of each reward by its name, which replace those that name its weights."""
    for part in ("clip", "blip", "hpsv3", "videoalign"):
        (root / part).mkdir()
    clip, hpsv3 = Made(root / "clip"), hpsv3_support.Checkpoint(root / "hpsv3")
    video = videoalign_support.Checkpoint(root / "videoalign")
    image_reward_support.save(root / "blip", image_reward_support.public_tensors())
    blip = str(root / "blip")
    found = {name: clip.args[name] for name in ("clip_score", "pick_score", "hpsv2", "aesthetic")}
    return found | {
        "image_reward": {"model": blip, "tokenizer": blip, **image_reward_support.HEADS},
        "hpsv3": {"model": str(hpsv3.file), "base": str(hpsv3.base), **hpsv3_support.SIZES},
        "video_reward": {"model": str(video.folder), "min_frame_pixels": 64, "dtype": "float32"},
    }


def overrides(recipe: Recipe, made: dict[str, dict[str, Any]]) -> list[str]:
    """Overrides with which a recipe's rewards are those of tiny checkpoints."""
    if {spec.use for spec in recipe.rewards.values()} & TIED:
        return ["rewards={size: {use: jpeg_compressibility, weight: 0.002}}"]
    return [
        f"rewards.{name}.args.{key}={value}"
        for name, spec in recipe.rewards.items()
        for key, value in made.get(spec.use, {}).items()
        if spec.args.get(key) not in ("shapes-clip", "shapes-aesthetic")  # these ship
    ]
