"""Sound: LongCat-AudioDiT, whose sigmas run upwards."""

from __future__ import annotations

import warnings

import diffusers as df
from diffusers import DiffusionPipeline

from . import text
from .base import Family, finish, randomize

RATE = 8000


def longcat_audio() -> DiffusionPipeline:
    """LongCat-AudioDiT: waveforms [B, 1, T] of RATE samples a second."""
    transformer = df.LongCatAudioDiTTransformer(
        dit_dim=32, dit_depth=1, dit_heads=2, dit_text_dim=text.WIDTH, latent_dim=8, text_conv=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of weight_norm
        vae = df.LongCatAudioDiTVae(
            in_channels=1,
            channels=16,
            c_mults=[1, 2],
            strides=[2],
            latent_dim=8,
            encoder_latent_dim=16,
            downsampling_ratio=2,
            sample_rate=RATE,
        )
    pipe = df.LongCatAudioDiTPipeline(
        vae=randomize(vae, 65),
        text_encoder=text.t5_text(umt5=True),
        tokenizer=text.t5_tokenizer(),
        transformer=randomize(transformer, 64),
    )
    return finish(pipe)


def families() -> list[Family]:
    """The families of this file."""
    call = {"audio_duration_s": 0.05, "guidance_scale": 2.0}
    return [Family("longcat_audio", longcat_audio, call, notes="t rises", tags=frozenset({"inverted_sigmas"}))]
