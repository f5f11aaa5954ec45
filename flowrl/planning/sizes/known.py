"""The published configs of models that recipes name by hub id: facts of their config.json files, no weights.

Only what differs from the defaults of the class in diffusers or transformers is written down. A test compares the
parameter counts that they give with the published ones.
"""

from flowrl.untyped import JSON

Config = dict[str, JSON]

_CLIP_L: Config = {
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
}
_CLIP_G: Config = {
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "max_position_embeddings": 77,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
_T5_XXL: Config = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
}
_UMT5_XXL: Config = _T5_XXL | {"model_type": "umt5", "vocab_size": 256384}
_QWEN25_VL_7B: Config = {
    "model_type": "qwen2_5_vl",
    "tie_word_embeddings": False,
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
    },
}
_VAE_16: Config = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def _wan(**transformer: int) -> dict[str, tuple[str, Config]]:
    return {
        "text_encoder": ("UMT5EncoderModel", _UMT5_XXL),
        "transformer": ("WanTransformer3DModel", dict(transformer)),
        "vae": ("AutoencoderKLWan", {}),
    }


# hub id -> class of its pipeline
PIPELINES = {
    "black-forest-labs/FLUX.1-dev": "FluxPipeline",
    "stabilityai/stable-diffusion-3.5-medium": "StableDiffusion3Pipeline",
    "stabilityai/stable-diffusion-xl-base-1.0": "StableDiffusionXLPipeline",
    "Qwen/Qwen-Image": "QwenImagePipeline",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "WanPipeline",
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": "WanPipeline",
}
# hub id -> component -> (class, config)
KNOWN: dict[str, dict[str, tuple[str, Config]]] = {
    "black-forest-labs/FLUX.1-dev": {
        "text_encoder": ("CLIPTextModel", _CLIP_L),
        "text_encoder_2": ("T5EncoderModel", _T5_XXL),
        "transformer": (
            "FluxTransformer2DModel",
            {
                "in_channels": 64,
                "num_layers": 19,
                "num_single_layers": 38,
                "attention_head_dim": 128,
                "num_attention_heads": 24,
                "joint_attention_dim": 4096,
                "pooled_projection_dim": 768,
                "guidance_embeds": True,
            },
        ),
        "vae": ("AutoencoderKL", _VAE_16),
    },
    "stabilityai/stable-diffusion-3.5-medium": {
        "text_encoder": ("CLIPTextModelWithProjection", _CLIP_L),
        "text_encoder_2": ("CLIPTextModelWithProjection", _CLIP_G),
        "text_encoder_3": ("T5EncoderModel", _T5_XXL),
        "transformer": (
            "SD3Transformer2DModel",
            {
                "sample_size": 128,
                "num_layers": 24,
                "attention_head_dim": 64,
                "num_attention_heads": 24,
                "joint_attention_dim": 4096,
                "caption_projection_dim": 1536,
                "pooled_projection_dim": 2048,
                "pos_embed_max_size": 384,
                "dual_attention_layers": list(range(13)),
                "qk_norm": "rms_norm",
            },
        ),
        "vae": ("AutoencoderKL", _VAE_16),
    },
    "stabilityai/stable-diffusion-xl-base-1.0": {
        "text_encoder": ("CLIPTextModel", _CLIP_L),
        "text_encoder_2": ("CLIPTextModelWithProjection", _CLIP_G),
        "unet": (
            "UNet2DConditionModel",
            {
                "sample_size": 128,
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
                "block_out_channels": [320, 640, 1280],
                "cross_attention_dim": 2048,
                "transformer_layers_per_block": [1, 2, 10],
                "attention_head_dim": [5, 10, 20],
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
        ),
        "vae": ("AutoencoderKL", _VAE_16 | {"latent_channels": 4, "use_quant_conv": True, "use_post_quant_conv": True}),
    },
    "Qwen/Qwen-Image": {
        "text_encoder": ("Qwen2_5_VLForConditionalGeneration", _QWEN25_VL_7B),
        "transformer": ("QwenImageTransformer2DModel", {}),
        "vae": ("AutoencoderKLQwenImage", {}),
    },
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": _wan(num_attention_heads=12, num_layers=30, ffn_dim=8960),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": _wan(num_attention_heads=40, num_layers=40, ffn_dim=13824),
}
