"""Which frames of a video every shipped reward with an argument `frames` looks at: one rule for all."""

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowrl import names
from flowrl.contracts import Prompt, Samples
from reward_models.parts import inputs

LENGTH = 9
FRAMES = {1: [4], 2: [0, 8], 3: [0, 4, 8], 5: [0, 2, 4, 6, 8], 20: list(range(LENGTH)), None: list(range(LENGTH))}
REWARDS = sorted(name for name, entry in names.rewards().items() if "frames" in (entry.accepts or ()))


class Seen(Exception):
    """Raised in place of scoring, with the numbers of the frames that a reward turned into pictures."""


def unloaded(name: str, frames: int | None) -> Any:
    """The reward without its weights or server: what it does before it looks at a picture needs neither."""
    entry = names.rewards()[name]
    kind = getattr(importlib.import_module(entry.module), entry.attribute)
    reward = kind.__new__(kind)
    before = {"name": name, "frames": frames, "refuse": False, "compatible": False, "key": "text", "missing": "error"}
    vars(reward).update(before, prompt="", system=None, reader=SimpleNamespace(lines=list))
    return reward


def test_these_rewards_take_frames() -> None:
    assert {"clip_score", "aesthetic", "ocr", "image_reward", "hpsv2", "vlm_judge", "server_judge"} <= set(REWARDS)


@pytest.mark.parametrize("frames", FRAMES, ids=str)
@pytest.mark.parametrize("name", REWARDS)
def test_all_rewards_look_at_the_same_frames(name: str, frames: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each frame of the video tells its number, by its grey."""

    def seen(pixels: Tensor) -> None:
        raise Seen((pixels.flatten(1).mean(1) * LENGTH).round().int().tolist())

    monkeypatch.setattr(inputs, "as_pil", seen)
    video = (torch.arange(LENGTH) / LENGTH).view(1, LENGTH, 1, 1, 1).expand(1, LENGTH, 3, 8, 8).contiguous()
    samples = Samples([Prompt("a", 'a sign that says "a"')], torch.zeros(1, dtype=torch.int64), video=video)
    with pytest.raises(Seen) as caught:
        unloaded(name, frames)(samples)
    assert caught.value.args[0] == FRAMES[frames]
