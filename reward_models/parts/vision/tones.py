"""Plain statistics of sound: tensors in, tensors out, with gradient; rewards and the metrics samples/* share them."""

import torch
from torch import Tensor

SILENCE = -120.0  # decibels below full scale that count as silence


def level(audio: Tensor) -> Tensor:
    """Root-mean-square level of sound [B, C, T], in decibels relative to full scale, float32 [B], at least SILENCE.

    A sine of amplitude 1 has -3.01 dB.
    """
    power = audio.float().square().mean((1, 2))
    return 10 * power.clamp(min=10 ** (SILENCE / 10)).log10()


def centroid(audio: Tensor, rate: int) -> Tensor:
    """Spectral centroid of sound [B, C, T] with a sample rate of `rate` Hz, in kHz, float32 [B]; NaN for silence.

    The mean frequency of the spectrum's power over the whole sound and all channels (Peeters, "A large set of audio
    features", 2004, section 6.1, with power in place of amplitude).
    """
    power = torch.fft.rfft(audio.float()).abs().square().sum(1)
    frequency = torch.fft.rfftfreq(audio.shape[-1], 1 / rate, device=power.device) / 1000
    total = power.sum(1)
    return (power * frequency).sum(1) / total.where(total > 0, torch.nan)


def clipped_share(audio: Tensor) -> Tensor:
    """Share of the samples of sound [B, C, T] that are at full scale or beyond, float32 [B]."""
    return (audio.abs() >= 1).float().mean((1, 2))
