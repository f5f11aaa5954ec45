"""Families whose loop has a peculiarity: HunyuanImage 2.1, LTX conditions, Mochi."""

from __future__ import annotations

from typing import Any

import diffusers as df
import transformers as tf
from diffusers import DiffusionPipeline
from diffusers.guiders import AdaptiveProjectedMixGuidance

from . import text
from .base import Family, finish, flow_euler, pixels_for, randomize
from .image import NEGATIVE, SIZE
from .video import ltx_parts


def hunyuan_image() -> DiffusionPipeline:
    """HunyuanImage 2.1: the guider keeps a running average of the guidance direction from step to step."""
    transformer = df.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1),
        text_embed_dim=text.WIDTH,
        text_embed_2_dim=text.WIDTH,
        rope_axes_dim=(4, 4),
    )
    vae = df.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=16,
        scaling_factor=0.5,
    )
    pipe = df.HunyuanImagePipeline(
        scheduler=flow_euler(shift=5.0),
        vae=randomize(vae, 71),
        text_encoder=text.qwen25_vl(),
        tokenizer=text.qwen_tokenizer(),
        text_encoder_2=text.byt5_text(),
        tokenizer_2=tf.ByT5Tokenizer(),
        transformer=randomize(transformer, 81),
        guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1),
        ocr_guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2),
    )
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 48, 16
    return finish(pipe)


def ltx_condition() -> DiffusionPipeline:
    """LTX-Video with image conditions: per-token timesteps, part of the state held at the condition."""
    parts = ltx_parts() | {"scheduler": flow_euler(shift=1.0)}
    return finish(df.LTXConditionPipeline(**parts))


def mochi() -> DiffusionPipeline:
    """Mochi: sigmas run upwards (invert_sigmas)."""
    transformer = df.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=text.WIDTH,
        in_channels=12,  # the pipeline decodes exactly 12 latent channels
        text_embed_dim=text.WIDTH,
        time_embed_dim=4,
        max_sequence_length=48,
    )
    vae = df.AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        latents_mean=(0.0,) * 12,
        latents_std=(1.0,) * 12,
    )
    pipe = df.MochiPipeline(
        scheduler=df.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=randomize(vae, 72),
        text_encoder=text.t5_text(),
        tokenizer=text.t5_tokenizer(),
        transformer=randomize(transformer, 82),
    )
    return finish(pipe)


def condition_rows(prompts: list[str]) -> dict[str, Any]:
    """One condition (the first frame) made of one image per prompt."""
    return {"image": [pixels_for(prompts, 32)]}


def families() -> list[Family]:
    """The families of this file."""
    negative = {"negative_prompt": NEGATIVE}
    guided = {"guidance_scale": 3.0, "max_sequence_length": 48} | negative
    return [
        Family(
            "hunyuan_image",
            hunyuan_image,
            dict(SIZE),
            notes="guidance momentum across steps: denoiser outputs of earlier steps must be remembered",
            tags=frozenset({"stateful_guidance"}),
        ),
        Family(
            "ltx_condition",
            ltx_condition,
            {"height": 32, "width": 32, "num_frames": 5} | guided,
            rows=condition_rows,
            notes="step(-v, per_token_timesteps=...); noise drawn from generator at every iteration",
            tags=frozenset({"per_token", "overwrites", "conditioning_generator"}),
        ),
        Family("mochi", mochi, SIZE | {"num_frames": 7} | guided, notes="t rises", tags=frozenset({"inverted_sigmas"})),
    ]
