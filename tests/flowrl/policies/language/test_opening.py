"""Videos and sounds as processors take them, and prompts with videos drawn and replayed."""

import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vision_support as vision
from flowrl.contracts import Prompt
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.opening import frames, opened, sound
from flowrl.policies.language.policy import LanguagePolicy
from flowrl.policies.loading import load_language, load_processor
from language_support import replayed
from samplers.tokens import Generation

PLAN = Generation(8)


def frame(seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (56, 84, 3), generator=generator, dtype=torch.uint8).numpy())


def clip(path: Path, number: int, seed: int = 0) -> str:
    shown = [frame(seed + i) for i in range(number)]
    shown[0].save(path, save_all=True, append_images=shown[1:], duration=100)
    return str(path)


def folder(path: Path, number: int, seed: int = 0) -> str:
    path.mkdir()
    for i in range(number):
        frame(seed + i).save(path / f"{i:03}.png")
    return str(path)


def tone(path: Path, rate: int, seconds: float, *, hertz: float = 440.0, channels: int = 1) -> str:
    time = np.arange(int(rate * seconds)) / rate
    whole = (0.5 * np.sin(2 * np.pi * hertz * time) * 2**15).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(np.repeat(whole[:, None], channels, 1).tobytes())
    return str(path)


def test_frames_of_a_clip_and_of_a_folder(tmp_path: Path):
    shown, known = frames(clip(tmp_path / "c.gif", 5))
    assert shown.shape == (5, 56, 84, 3) and known is not None and (known.fps, known.total_num_frames) == (10, 5)
    shown, known = frames(folder(tmp_path / "f", 3, seed=4))
    assert known is None and np.array_equal(shown[2], np.asarray(frame(6)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(PolicyError, match="cannot be read as a video .*without pictures"):
        opened(str(tmp_path / "empty"), None)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_sound_comes_at_the_rate_that_is_asked_for(tmp_path: Path, channels: int):
    path = tone(tmp_path / "t.wav", 8000, 0.5, channels=channels)
    same, doubled = sound(path, 8000), sound(path, 16000)
    time = np.arange(8000) / 16000
    assert same.shape == (4000,) and doubled.shape == (8000,) and doubled.dtype == np.float32
    assert np.abs(doubled - 0.5 * np.sin(2 * np.pi * 440 * time)).max() < 1e-3
    with pytest.raises(PolicyError, match="cannot be read as a sound .*takes no sounds"):
        opened(path, object())


def test_arguments_that_no_part_of_a_processor_takes_are_refused(tmp_path: Path):
    place = str(vision.folder(tmp_path, "qwen2_5_vl"))
    made = load_processor(place, {"size": {"shortest_edge": 784, "longest_edge": 784}})
    assert made.image_processor.size["longest_edge"] == 784
    with pytest.raises(PolicyError, match="generation.processor.fpz: no part of Qwen2_5_VLProcessor takes it"):
        load_processor(place, {"fpz": 2})


def test_videos_and_pictures_are_drawn_and_replayed(tmp_path: Path):
    place = vision.folder(tmp_path / "model", "qwen2_5_vl")
    model, own = load_language(str(place), torch.float32)
    sampled = load_processor(str(place), {"fps": 2, "do_sample_frames": True})
    subject = LanguagePolicy(model, own, processor=sampled)
    prompts = [
        Prompt("clip", "What happens in <video> and is in <image>?", (clip(tmp_path / "c.gif", 24),)),
        Prompt("folder", "And here?", (folder(tmp_path / "f", 4, seed=40),)),
        Prompt("picture", "What is this?", (vision.picture(tmp_path / "p.png"),)),
    ]
    prompts[0] = Prompt("clip", prompts[0].text, (*prompts[0].media, prompts[2].media[0]))
    rollout = subject.rollout(prompts, group_size=2, plan=PLAN, seed=0)
    tensors = rollout.replay.inputs[0].pieces[0].tensors
    grid = tensors["video_grid_thw"][0].tolist()
    assert grid[0] == 2 and "image_grid_thw" in tensors  # two frames a second, two in one patch: the processor's own
    assert rollout.replay.inputs[2].pieces[0].tensors["video_grid_thw"][0, 0] == 2  # all four of the folder
    whole = replayed(subject, rollout, [[0, 1, 2, 3, 4, 5]]).logp
    alone = replayed(subject, rollout, [[2], [0], [1], [3], [4], [5]]).logp
    mask = rollout.mask
    torch.testing.assert_close(whole[mask], rollout.rollout_logp[mask], rtol=0, atol=1e-5)
    torch.testing.assert_close(alone[mask], rollout.rollout_logp[mask], rtol=0, atol=1e-5)
