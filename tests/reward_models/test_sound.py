"""Statistics of sound have their closed forms, and read nothing but sound."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flowrl.contracts import Prompt, Samples
from flowrl.watch.sample_statistics import sample_statistics
from reward_models.parts.vision import tones
from reward_models.sound import sound_level, spectral_centroid

RATE = 8000


def sine(hertz: float, amplitude: float = 1.0, number: int = 800) -> Tensor:
    """A whole number of periods at RATE, [number]."""
    return amplitude * torch.sin(2 * math.pi * hertz * torch.arange(number, dtype=torch.float64) / RATE).float()


def samples(audio: Tensor, **more: object) -> Samples:
    number = len(audio)
    given = {"audio": audio, "sample_rate": RATE} | more
    return Samples([Prompt(str(i), "") for i in range(number)], torch.arange(number) // 2, **given)  # type: ignore


def test_a_sine_has_its_level_and_its_frequency() -> None:
    audio = torch.stack([sine(1000), sine(250, 0.1), sine(1000) + sine(3000), torch.zeros(800)])[:, None]
    levels = sound_level()(samples(audio))
    assert levels[:3].tolist() == pytest.approx([-3.0103, -23.0103, 0.0], abs=1e-3)
    assert levels[3] == -120
    kilohertz = spectral_centroid()(samples(audio))
    assert kilohertz[:3].tolist() == pytest.approx([1.0, 0.25, 2.0], abs=1e-4)
    assert kilohertz[3].isnan()
    assert spectral_centroid()(samples(audio[:1], sample_rate=2 * RATE)).item() == pytest.approx(2.0, abs=1e-4)


def test_power_of_channels_adds_up() -> None:
    stereo = torch.stack([sine(1000, 2**0.5 / 2), torch.zeros(800)])[None]
    assert sound_level()(samples(stereo)).item() == pytest.approx(10 * math.log10(1 / 8), abs=1e-3)
    both = torch.stack([sine(1000), sine(2000)])[None]
    assert spectral_centroid()(samples(both)).item() == pytest.approx(1.5, abs=1e-4)


def test_what_is_not_finite_has_no_score_and_leaves_the_others_theirs() -> None:
    audio = torch.stack([sine(1000), sine(1000)])[:, None]
    audio[1, 0, 5] = torch.nan
    for reward in (sound_level(), spectral_centroid()):
        found = reward(samples(audio))
        assert found.dtype == torch.float32 and found[1].isnan() and found[0].isfinite()


def test_samples_without_sound_are_refused_in_one_line() -> None:
    pictures = Samples([Prompt("a", "")], torch.zeros(1).long(), images=torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="sound_level scores sound; this model gives images"):
        sound_level()(pictures)
    with pytest.raises(ValueError, match=r"spectral_centroid: sound is torch.float32 \[1, 800\]; accepted is"):
        spectral_centroid()(samples(sine(1000)[None]))


def test_gradient_reaches_the_sound() -> None:
    audio = sine(1000, 0.5)[None, None].requires_grad_()
    (grad,) = torch.autograd.grad(tones.level(audio).sum(), audio)
    assert torch.allclose(grad, 20 / math.log(10) * audio / audio.square().sum(), atol=1e-6)
    (grad,) = torch.autograd.grad(tones.centroid(audio, RATE).sum(), audio)
    assert grad.isfinite().all()


def test_statistics_of_sound_alone_and_beside_a_video() -> None:
    audio = torch.stack([sine(1000), sine(1000), sine(500), sine(3000)])[:, None]
    alone = sample_statistics(samples(audio))
    assert alone["samples/sound_level"] == pytest.approx(-3.0103, abs=1e-3)
    assert alone["samples/sound_centroid"] == pytest.approx(1.375, abs=1e-4)
    assert alone["samples/sound_clipped"] == pytest.approx(2 * 0.25 / 4, abs=0.13)
    assert "samples/brightness" not in alone
    same = sample_statistics(samples(audio[:2]))["samples/diversity"]
    assert same == 0 and sample_statistics(samples(audio[2:]))["samples/diversity"] > 0.05
    beside = sample_statistics(samples(audio, video=torch.rand(4, 3, 3, 8, 8)))
    assert {"samples/brightness", "samples/sound_level"} <= set(beside)
