"""Video families: Wan 2.1 and 2.2, HunyuanVideo, LTX-Video, LTX-2 (video and audio), Mochi, Kandinsky5 T2V."""

from __future__ import annotations

from typing import Any

import diffusers as df
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

from . import text
from .base import Family, finish, flow_euler, image_for, randomize, wan_vae

NEGATIVE = "blurry, low quality"
TEMPLATE = {"template": "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>", "crop_start": 4}


# sizes of a denoiser of Wan, or built as one is
WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": text.WIDTH,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 1,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}


def wan_transformer(seed: int, in_channels: int = 4) -> df.WanTransformer3DModel:
    """The Wan denoiser; image-to-video takes 4 noise + 4 mask + 4 condition channels."""
    return randomize(df.WanTransformer3DModel(**WAN | {"in_channels": in_channels}), seed)


def unipc() -> df.UniPCMultistepScheduler:
    """The scheduler Wan ships with: UniPC on flow sigmas."""
    return df.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )


def wan_parts(scheduler: object) -> dict[str, object]:
    """Components every Wan pipeline shares."""
    return {
        "tokenizer": text.t5_tokenizer(),
        "text_encoder": text.t5_text(umt5=True),
        "vae": wan_vae(4),
        "scheduler": scheduler,
    }


def wan() -> DiffusionPipeline:
    """Wan 2.1 text to video with FlowMatchEulerDiscreteScheduler."""
    return finish(df.WanPipeline(**wan_parts(flow_euler()), transformer=wan_transformer(41)))


def wan_unipc() -> DiffusionPipeline:
    """Wan 2.1 text to video with its default UniPC scheduler."""
    return finish(df.WanPipeline(**wan_parts(unipc()), transformer=wan_transformer(41)))


def wan22() -> DiffusionPipeline:
    """Wan 2.2: two denoisers; with four steps and shift 3 each of them runs two."""
    pipe = df.WanPipeline(
        **wan_parts(flow_euler()),
        transformer=wan_transformer(41),
        transformer_2=wan_transformer(42),
        boundary_ratio=0.8,
    )
    return finish(pipe, "transformer", "transformer_2")


def wan_i2v() -> DiffusionPipeline:
    """Wan 2.2-style image to video without an image encoder, one denoiser."""
    return finish(
        df.WanImageToVideoPipeline(**wan_parts(flow_euler()), transformer=wan_transformer(43, in_channels=12))
    )


def hunyuan_vae() -> df.AutoencoderKLHunyuanVideo:
    """AutoencoderKLHunyuanVideo: 8x spatial, 4x temporal."""
    vae = df.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    )
    return randomize(vae, 14)


def hunyuan_video() -> DiffusionPipeline:
    """HunyuanVideo: LLaMA tokens, pooled CLIP, embedded guidance."""
    transformer = df.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=text.WIDTH,
        pooled_projection_dim=text.WIDTH,
        rope_axes_dim=(4, 4, 4),
    )
    pipe = df.HunyuanVideoPipeline(
        text_encoder=text.llama(),
        tokenizer=text.qwen_tokenizer(),
        transformer=randomize(transformer, 44),
        vae=hunyuan_vae(),
        scheduler=flow_euler(shift=7.0),
        text_encoder_2=text.clip_text(),
        tokenizer_2=text.clip_tokenizer(),
    )
    return finish(pipe)


def ltx_parts() -> dict[str, object]:
    """Components of the LTX-Video pipelines."""
    transformer = df.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=text.WIDTH,
    )
    vae = df.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )
    return {
        "scheduler": flow_euler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05),
        "vae": randomize(vae, 15),
        "text_encoder": text.t5_text(),
        "tokenizer": text.t5_tokenizer(),
        "transformer": randomize(transformer, 45),
    }


def ltx() -> DiffusionPipeline:
    """LTX-Video text to video."""
    return finish(df.LTXPipeline(**ltx_parts()))


def ltx2() -> DiffusionPipeline:
    """LTX-2: video and audio denoised together, each with its own scheduler."""
    transformer = df.LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        vae_scale_factors=(4, 4, 4),
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=text.WIDTH,
        rope_double_precision=False,
    )
    vae = df.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 8),
        down_block_types=("LTX2VideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True),
        decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False, False, False),
        downsample_type=("spatiotemporal", "spatiotemporal"),
        upsample_type=("spatiotemporal", "spatiotemporal"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
        patch_size=1,
    )
    audio_vae = df.AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=8
    )
    connectors = LTX2TextConnectors(
        caption_channels=text.WIDTH,
        text_proj_in_factor=3,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=8,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=8,
        connector_rope_base_seq_len=32,
        rope_double_precision=False,
    )
    vocoder = LTX2Vocoder(
        in_channels=16,
        hidden_channels=16,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3]],
        output_sampling_rate=16000,
    )
    pipe = df.LTX2Pipeline(
        scheduler=flow_euler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05),
        vae=randomize(vae, 16),
        audio_vae=randomize(audio_vae, 17),
        text_encoder=text.gemma3(),
        tokenizer=text.gemma_tokenizer(),
        connectors=randomize(connectors, 18),
        transformer=randomize(transformer, 46),
        vocoder=randomize(vocoder, 19),
    )
    return finish(pipe)


def families() -> list[Family]:
    """The families of this file."""
    torch.manual_seed(0)
    small = {"height": 16, "width": 16, "num_frames": 5}
    wan_call = small | {"guidance_scale": 3.0, "negative_prompt": NEGATIVE, "max_sequence_length": 48}
    wan_i2v_call = wan_call | {"image": image_for("wan"), "height": 16, "width": 16}
    large = {"height": 32, "width": 32, "num_frames": 5}
    ltx2_call = large | {"frame_rate": 25.0, "max_sequence_length": 48, "spatio_temporal_guidance_blocks": [1]}
    both = ("transformer", "transformer_2")
    return [
        Family("wan", wan, wan_call, notes="two forwards per step (cond, uncond)"),
        Family("wan_unipc", wan_unipc, wan_call, base="multistep", notes="UniPC with flow sigmas"),
        Family(
            "wan22", wan22, wan_call | {"guidance_scale_2": 2.0}, modules=both, notes="boundary on t, two denoisers"
        ),
        Family("wan_i2v", wan_i2v, wan_i2v_call, notes="one image shared by all rows"),
        Family(
            "hunyuan_video",
            hunyuan_video,
            small | {"guidance_scale": 6.0, "max_sequence_length": 48, "prompt_template": TEMPLATE},
            notes="guidance embedded; prompt_template replaced by a short one",
        ),
        Family(
            "ltx",
            ltx,
            large | {"guidance_scale": 3.0, "negative_prompt": NEGATIVE, "max_sequence_length": 48},
            notes="CFG as one forward on 2R rows; packed latents; mu",
        ),
        Family(
            "ltx2",
            ltx2,
            ltx2_call | {"negative_prompt": NEGATIVE},
            notes="deepcopied audio scheduler; guidance in x0 space by scheduler.sigmas[i]",
            tags=frozenset({"two_schedulers", "index"}),
        ),
    ]
