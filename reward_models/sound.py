"""Plain statistics of sound as rewards: they measure no quality, and a policy games them at once.

Use them to prove a guard, or as witnesses (weight 0) beside a learned reward. The formulas are those of the metrics
samples/sound_*, in parts/tones.py. Of a video with sound, the sound alone counts.
"""

import torch
from torch import Tensor

from flowrl.contracts import Samples
from reward_models.parts import inputs
from reward_models.parts.vision import tones


class sound_level:  # noqa: N801 - recipes name it
    """Root-mean-square level in decibels relative to full scale, -120 (silence) to 0: a reward that is easy to game."""

    def __call__(self, samples: Samples) -> Tensor:
        """float32 [B]; NaN of a sound that is not finite."""
        audio, _ = inputs.sounds("sound_level", samples)
        return tones.level(audio.nan_to_num()).masked_fill(inputs.is_unscorable(audio), torch.nan).cpu()


class spectral_centroid:  # noqa: N801 - recipes name it
    """Mean frequency of the sound's power in kHz, 0 to half the sample rate: how bright it sounds."""

    def __call__(self, samples: Samples) -> Tensor:
        """float32 [B]; NaN of silence and of a sound that is not finite."""
        audio, rate = inputs.sounds("spectral_centroid", samples)
        return tones.centroid(audio.nan_to_num(), rate).masked_fill(inputs.is_unscorable(audio), torch.nan).cpu()
