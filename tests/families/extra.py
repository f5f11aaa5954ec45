"""Further families: Lumina2, HiDream, AuraFlow, CogView4, Chroma, Kandinsky5 text to video."""

from __future__ import annotations

import diffusers as df
from diffusers import DiffusionPipeline

from . import text
from .base import Family, finish, flow_euler, image_vae, image_vae8, randomize
from .image import DYNAMIC, NEGATIVE, SIZE
from .image_more import KANDINSKY_TEMPLATE, kandinsky_transformer
from .video import hunyuan_vae


def lumina2() -> DiffusionPipeline:
    """Lumina-Image 2.0: time runs from 0 (noise) to 1 inside the denoiser only."""
    transformer = df.Lumina2Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(128, 32, 32),
        cap_feat_dim=text.WIDTH,
    )
    pipe = df.Lumina2Pipeline(
        transformer=randomize(transformer, 91),
        scheduler=flow_euler(**DYNAMIC),
        vae=image_vae8(),
        text_encoder=text.gemma2(),
        tokenizer=text.gemma_tokenizer(),
    )
    return finish(pipe)


def hidream() -> DiffusionPipeline:
    """HiDream-I1: four text encoders, mixture of experts, velocity negated before step()."""
    transformer = df.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_channels=[text.WIDTH, text.WIDTH],
        text_emb_dim=2 * text.WIDTH,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(16, 16),
        llama_layers=[0, 1],
    )
    pipe = df.HiDreamImagePipeline(
        scheduler=flow_euler(),
        vae=image_vae(4),
        text_encoder=text.clip_text(projection=True),
        tokenizer=text.clip_tokenizer(),
        text_encoder_2=text.clip_text(projection=True, seed=31),
        tokenizer_2=text.clip_tokenizer(),
        text_encoder_3=text.t5_text(),
        tokenizer_3=text.t5_tokenizer(),
        text_encoder_4=text.llama(causal=True, attn_implementation="eager"),
        tokenizer_4=text.qwen_tokenizer(),
        transformer=randomize(transformer, 92),
    )
    pipe.default_sample_size = 8  # the pipeline scales height and width to this area
    return finish(pipe)


def aura_flow() -> DiffusionPipeline:
    """AuraFlow."""
    transformer = df.AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=text.WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    pipe = df.AuraFlowPipeline(
        tokenizer=text.t5_tokenizer(),
        text_encoder=text.t5_text(umt5=True),
        vae=image_vae(4),
        transformer=randomize(transformer, 93),
        scheduler=flow_euler(shift=1.73),
    )
    return finish(pipe)


def cogview4() -> DiffusionPipeline:
    """CogView4: GLM features, sigmas rounded to integer timesteps."""
    transformer = df.CogView4Transformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=text.WIDTH,
        time_embed_dim=16,
        condition_dim=4,
        sample_size=8,
        rope_axes_dim=(16, 16),
    )
    pipe = df.CogView4Pipeline(
        tokenizer=text.qwen_tokenizer(),
        text_encoder=text.glm(),
        vae=image_vae(4, shift_factor=0.0),
        transformer=randomize(transformer, 94),
        scheduler=flow_euler(base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"),
    )
    return finish(pipe)


def chroma() -> DiffusionPipeline:
    """Chroma: FLUX without pooled text, with real CFG."""
    transformer = df.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=text.WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    pipe = df.ChromaPipeline(
        scheduler=flow_euler(**DYNAMIC),
        vae=image_vae(4),
        text_encoder=text.t5_text(),
        tokenizer=text.t5_tokenizer(),
        transformer=randomize(transformer, 95),
    )
    return finish(pipe)


def kandinsky5_t2v() -> DiffusionPipeline:
    """Kandinsky 5 text to video, with a short prompt template."""
    pipe = df.Kandinsky5T2VPipeline(
        transformer=kandinsky_transformer(),
        vae=hunyuan_vae(),
        text_encoder=text.qwen25_vl(),
        tokenizer=text.qwen_vl_processor(),
        text_encoder_2=text.clip_text(),
        tokenizer_2=text.clip_tokenizer(),
        scheduler=flow_euler(shift=5.0),
    )
    pipe.prompt_template, pipe.prompt_template_encode_start_idx = KANDINSKY_TEMPLATE, 3
    return finish(pipe)


def families() -> list[Family]:
    """The families of this file."""
    negative = {"negative_prompt": NEGATIVE}
    guided = SIZE | {"guidance_scale": 3.0, "max_sequence_length": 48} | negative
    return [
        Family(
            "lumina2",
            lumina2,
            guided | {"height": 32, "width": 32, "cfg_trunc_ratio": 0.6, "system_prompt": "s"},
            notes="CFG only on the first half of the steps (cfg_trunc_ratio reads the loop index); velocity negated",
            tags=frozenset({"index"}),
        ),
        Family("hidream", hidream, guided, notes="velocity negated; mixture of experts"),
        Family("aura_flow", aura_flow, guided, notes="CFG as one forward on 2R rows"),
        Family(
            "cogview4", cogview4, guided, notes="text left-padded to the batch, not masked", tags=frozenset({"padding"})
        ),
        Family("chroma", chroma, guided, notes="attention mask over text padding; two forwards"),
        Family(
            "kandinsky5_t2v",
            kandinsky5_t2v,
            guided | {"num_frames": 5},
            notes="text padding not masked; step() on a slice, written back in place",
            tags=frozenset({"padding", "inplace_state"}),
        ),
    ]
