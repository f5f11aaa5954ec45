"""Videos and sounds as processors take them, and prompts with videos drawn and replayed."""

import importlib.util
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vision_support as vision
from flowrl.contracts import Prompt
from flowrl.policies.errors import PolicyError
from flowrl.policies.language.media.opening import frames, opened, sound
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


def has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def film(path: Path, codec: str, number: int = 12, rate: int = 10) -> str:
    """A video of plain frames that grow lighter; each is another."""
    av: Any = pytest.importorskip("av")
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(number):
            shown = np.full((64, 96, 3), min(20 * i, 250), np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        file.mux(stream.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "codec"), [("c.mp4", "mpeg4"), ("c.mkv", "mpeg4"), ("c.webm", "libvpx"), ("c.avi", "mpeg4")]
)
def test_videos_of_files_are_read_whole(tmp_path: Path, name: str, codec: str):
    shown, known = frames(film(tmp_path / name, codec))
    assert shown.shape == (12, 64, 96, 3) and shown.dtype == np.uint8
    assert known is not None and known.total_num_frames == 12 and known.fps == pytest.approx(10, rel=0.1)
    assert np.abs(shown.mean((1, 2, 3)) - 20 * np.arange(12)).max() < 4


def test_a_video_is_drawn_about_and_replayed(tmp_path: Path):
    place = vision.folder(tmp_path / "model", "qwen2_5_vl")
    model, own = load_language(str(place), torch.float32)
    subject = LanguagePolicy(model, own, processor=load_processor(str(place), {"fps": 2, "do_sample_frames": True}))
    files = [film(tmp_path / "a.mp4", "mpeg4"), film(tmp_path / "b.webm", "libvpx", 40)]
    prompts = [Prompt(str(i), "What happens?", (file,)) for i, file in enumerate(files)]
    rollout = subject.rollout(prompts, group_size=2, plan=PLAN, seed=0)
    grids = [own.pieces[0].tensors["video_grid_thw"][0, 0].item() for own in rollout.replay.inputs]
    assert grids[0] == grids[1] < grids[2] == grids[3]  # a longer video has more frames at two a second
    alone = replayed(subject, rollout, [[2], [0], [1], [3]]).logp
    torch.testing.assert_close(alone[rollout.mask], rollout.rollout_logp[rollout.mask], rtol=0, atol=1e-5)


def test_a_file_that_is_no_video_is_named(tmp_path: Path):
    pytest.importorskip("av")
    (tmp_path / "c.mp4").write_bytes(b"no video at all")
    with pytest.raises(PolicyError, match=r"c.mp4: cannot be read as a video \(ValueError"):
        opened(str(tmp_path / "c.mp4"), None)
    with pytest.raises(PolicyError, match="without a video in it"):
        place = tone(tmp_path / "t.wav", 8000, 0.2)
        opened(str(Path(place).rename(tmp_path / "t.mp4")), None)


def test_a_video_without_its_package_is_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(PolicyError, match="pip install av for videos") as error:
        opened(str(tmp_path / "c.mp4"), None)
    assert "\n" not in str(error.value)


class Hears:
    feature_extractor = type("Ears", (), {"sampling_rate": 16000})()


@pytest.mark.parametrize(
    ("name", "subtype", "off"),
    [("t.flac", None, 1e-3), ("t.ogg", None, 0.05), ("t.mp3", None, 0.05), ("t8.wav", "PCM_24", 1e-3)],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_sounds_of_files_come_at_the_rate_that_is_asked_for(
    tmp_path: Path, name: str, subtype: str | None, off: float, channels: int
):
    soundfile: Any = pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    time = np.arange(24000) / 24000
    whole = 0.5 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / name, np.repeat(whole[:, None], channels, 1), 24000, subtype=subtype)
    heard = opened(str(tmp_path / name), Hears())
    assert heard.dtype == np.float32 and heard.ndim == 1 and abs(len(heard) - 16000) < 1600
    inner = heard[4000:12000]
    spectrum = np.abs(np.fft.rfft(inner))
    assert abs(spectrum.argmax() * 16000 / len(inner) - 440) < 4 and abs(np.abs(inner).max() - 0.5) < off


@pytest.mark.skipif(has("soundfile"), reason="soundfile is installed")
def test_a_sound_without_its_package_is_refused_in_a_line(tmp_path: Path):
    (tmp_path / "t.flac").write_bytes(b"fLaC")
    with pytest.raises(PolicyError, match="soundfile soxr for sounds") as error:
        opened(str(tmp_path / "t.flac"), Hears())
    assert "\n" not in str(error.value)
