"""Text-to-image families: FLUX.1, SD3, Qwen-Image, Z-Image, FLUX.2, Sana, Cosmos2, Kandinsky5."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

from . import text
from .base import Family, finish, flow_euler, image_vae, qwen_vae, randomize

NEGATIVE = "blurry, low quality"
DYNAMIC = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


def flux_parts(guidance: bool = True, in_channels: int = 16, **scheduler: object) -> dict[str, object]:
    """Components of FluxPipeline; the image-conditioned FLUX.1 pipelines take the same ones."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=in_channels,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=text.WIDTH,
        pooled_projection_dim=text.WIDTH,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 4, 8),
    )
    return {
        "scheduler": flow_euler(**scheduler),
        "vae": image_vae(4),
        "text_encoder": text.clip_text(),
        "tokenizer": text.clip_tokenizer(),
        "text_encoder_2": text.t5_text(),
        "tokenizer_2": text.t5_tokenizer(),
        "transformer": randomize(transformer, 1),
    }


def sd3_parts(channels: int = 4) -> dict[str, object]:
    """Components of StableDiffusion3Pipeline: two CLIP encoders with projection and one T5."""
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * text.WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * text.WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    return {
        "scheduler": flow_euler(),
        "vae": image_vae(channels),
        "text_encoder": text.clip_text(projection=True),
        "tokenizer": text.clip_tokenizer(),
        "text_encoder_2": text.clip_text(projection=True, seed=31),
        "tokenizer_2": text.clip_tokenizer(),
        "text_encoder_3": text.t5_text(width=2 * text.WIDTH),
        "tokenizer_3": text.t5_tokenizer(),
        "transformer": randomize(transformer, 2),
    }


def qwen_transformer(**kwargs: object) -> QwenImageTransformer2DModel:
    """The Qwen-Image denoiser for 4 latent channels."""
    model = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=text.WIDTH,
        axes_dims_rope=(4, 4, 8),
        **kwargs,
    )
    return randomize(model, 3)


def flux() -> DiffusionPipeline:
    """FLUX.1-dev: guidance embedding, static shift."""
    return finish(FluxPipeline(**flux_parts()))


def flux_dynamic() -> DiffusionPipeline:
    """FLUX.1-dev with resolution-dependent shifting (mu)."""
    return finish(FluxPipeline(**flux_parts(**DYNAMIC)))


def sd3() -> DiffusionPipeline:
    """Stable Diffusion 3."""
    return finish(StableDiffusion3Pipeline(**sd3_parts()))


def qwen_image() -> DiffusionPipeline:
    """Qwen-Image."""
    pipe = QwenImagePipeline(
        scheduler=flow_euler(**DYNAMIC),
        vae=qwen_vae(4),
        text_encoder=text.qwen25_vl(),
        tokenizer=text.qwen_tokenizer(),
        transformer=qwen_transformer(),
    )
    return finish(pipe)


def z_image() -> DiffusionPipeline:
    """Z-Image."""
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=text.WIDTH,
        axes_dims=[4, 4, 8],
        axes_lens=[256, 32, 32],
    )
    # x_pad_token and cap_pad_token are created with torch.empty: randomize fills them too.
    pipe = ZImagePipeline(
        scheduler=flow_euler(),
        vae=image_vae(4),
        text_encoder=text.qwen3(),
        tokenizer=text.qwen_tokenizer(),
        transformer=randomize(transformer, 4),
    )
    return finish(pipe)


SIZE = {"height": 16, "width": 16}


def negative_rows(prompts: list[str]) -> dict[str, Any]:
    """One negative prompt per prompt, where the pipeline does not repeat a single string itself."""
    return {"negative_prompt": [NEGATIVE] * len(prompts)}


def families() -> list[Family]:
    """The families of this file."""
    flux_call = {**SIZE, "guidance_scale": 3.5, "max_sequence_length": 48}
    sd3_call = {**SIZE, "guidance_scale": 4.0, "max_sequence_length": 48, "negative_prompt": NEGATIVE}
    skip = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.01, "skip_layer_guidance_stop": 0.6}
    qwen_call = {"height": 32, "width": 32, "true_cfg_scale": 3.0, "max_sequence_length": 64}
    return [
        Family("flux", flux, flux_call, notes="one forward per step, guidance embedded"),
        Family("flux_dynamic", flux_dynamic, flux_call, notes="mu from the number of image tokens"),
        Family("sd3", sd3, sd3_call, notes="CFG as one forward on 2R rows, negative first"),
        Family("sd3_slg", sd3, sd3_call | skip, tags=frozenset({"index"}), notes="extra forward at steps 1..2 of 4"),
        Family("qwen_image", qwen_image, qwen_call, rows=negative_rows, notes="two forwards, CFG rescaled per token"),
        Family(
            "z_image",
            z_image,
            {**SIZE, "guidance_scale": 3.0, "max_sequence_length": 64},
            notes="edits the prompt list in place; velocity negated before step()",
            tags=frozenset({"mutates"}),
        ),
    ]
