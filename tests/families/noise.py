"""Families whose model predicts noise or v, along alphas_cumprod: Stable Diffusion, SDXL, PixArt, CogVideoX."""

from __future__ import annotations

from typing import Any

import diffusers as df
from diffusers import DiffusionPipeline

from . import text
from .base import Family, finish, image_vae, randomize
from .image import NEGATIVE, SIZE, negative_rows

# as in the published scheduler_config.json files of SD 1.5 and SDXL
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def unet(seed: int, **config: Any) -> df.UNet2DConditionModel:
    """A UNet of two levels with cross-attention in the lower one."""
    model = df.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=2,
        **config,
    )
    return randomize(model, seed)  # pyright: ignore[reportReturnType]


def stable_diffusion(scheduler: Any, seed: int = 91) -> DiffusionPipeline:
    """Stable Diffusion 1.x or 2.x without a safety checker."""
    pipe = df.StableDiffusionPipeline(
        scheduler=scheduler,
        vae=image_vae(4, shift_factor=None),
        text_encoder=text.clip_text(),
        tokenizer=text.clip_tokenizer(),
        unet=unet(seed, cross_attention_dim=text.WIDTH, attention_head_dim=2),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return finish(pipe, "unet")


def sd15() -> DiffusionPipeline:
    """Stable Diffusion 1.5 with the scheduler it ships: PNDM, whose table ends at alphas_cumprod[0]."""
    return stable_diffusion(df.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **STABLE))


def sd_v() -> DiffusionPipeline:
    """A v-predicting Stable Diffusion 2 whose first step begins at pure noise, s = 1."""
    options = STABLE | {"clip_sample": False, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return stable_diffusion(df.DDIMScheduler(prediction_type="v_prediction", **options), seed=92)


def sdxl() -> DiffusionPipeline:
    """SDXL with the scheduler it ships: Euler, at noise levels up to 13."""
    sizes = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 6 * 4 + text.WIDTH}
    attention = {"attention_head_dim": (1, 2), "transformer_layers_per_block": (1, 2), "use_linear_projection": True}
    pipe = df.StableDiffusionXLPipeline(
        scheduler=df.EulerDiscreteScheduler(timestep_spacing="leading", **STABLE),
        vae=image_vae(4, shift_factor=None),
        text_encoder=text.clip_text(),
        tokenizer=text.clip_tokenizer(),
        text_encoder_2=text.clip_text(projection=True, seed=31),
        tokenizer_2=text.clip_tokenizer(),
        unet=unet(93, addition_embed_type="text_time", cross_attention_dim=2 * text.WIDTH, **sizes, **attention),
        add_watermarker=False,
    )
    return finish(pipe, "unet")


def pixart() -> DiffusionPipeline:
    """PixArt-alpha: a transformer that predicts noise, and variances that the pipeline drops, on DPM-Solver."""
    transformer = df.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=text.WIDTH,
        cross_attention_dim=16,
        in_channels=4,
        out_channels=8,
    )
    pipe = df.PixArtAlphaPipeline(
        scheduler=df.DPMSolverMultistepScheduler(beta_end=0.02, beta_start=0.0001, beta_schedule="linear"),
        vae=image_vae(4, shift_factor=None),
        text_encoder=text.t5_text(),
        tokenizer=text.t5_tokenizer(),
        transformer=randomize(transformer, 94),
    )
    return finish(pipe)


def cogvideox() -> DiffusionPipeline:
    """CogVideoX: a DDIM of its own, whose table is shifted by an option that no other scheduler has."""
    transformer = df.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=text.WIDTH,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=32,
    )
    vae = df.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    options = STABLE | {"steps_offset": 0, "snr_shift_scale": 3.0, "set_alpha_to_one": True, "clip_sample": False}
    pipe = df.CogVideoXPipeline(
        scheduler=df.CogVideoXDDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", **options
        ),
        vae=randomize(vae, 15),
        text_encoder=text.t5_text(),
        tokenizer=text.t5_tokenizer(),
        transformer=randomize(transformer, 95),
    )
    return finish(pipe)


def families() -> list[Family]:
    """The families of this file."""
    call = {**SIZE, "guidance_scale": 5.0}
    of_unet: dict[str, Any] = {"modules": ("unet",), "base": "ddim", "rows": negative_rows}
    plain = {**SIZE, "guidance_scale": 4.5, "negative_prompt": NEGATIVE}
    pixart_call = plain | {"max_sequence_length": 48, "use_resolution_binning": False, "clean_caption": False}
    video = {**SIZE, "num_frames": 5, "guidance_scale": 3.0, "max_sequence_length": 32}
    return [
        Family("sd15", sd15, call, notes="CFG as one forward on 2R rows", **of_unet),
        Family("sd_v", sd_v, call, notes="v-prediction, zero terminal SNR, trailing timesteps", **of_unet),
        Family("sdxl", sdxl, call, notes="size conditions beside the text", **of_unet),
        Family("pixart", pixart, pixart_call, base="ddim", notes="predicts variances too"),
        Family("cogvideox", cogvideox, video, base="ddim"),
    ]
