"""Components that several published pipelines share: text encoders, autoencoders and schedulers, as their configs say.

Facts of the config.json files on the hub and of the conversion scripts of diffusers (`scripts/convert_*.py`). What is
the default of the class in diffusers or transformers is left out, unless it says how many blocks there are.
"""

from dataclasses import dataclass, field

from flowrl.untyped import JSON

Config = dict[str, JSON]
Part = tuple[str, Config]  # class, config


@dataclass(frozen=True)
class Known:
    """A published pipeline. parts: its components with weights; tokenizers: component -> class of tokenizers and
    processors; settings: what else its index says."""

    pipeline: str
    parts: dict[str, Part]
    scheduler: Part
    tokenizers: dict[str, str]
    settings: Config = field(default_factory=dict)


CLIP_L: Config = {
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
}
CLIP_G: Config = CLIP_L | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
CLIP_H_VISION: Config = {
    "model_type": "clip_vision_model",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 1024,
    "hidden_act": "gelu",
}
T5_XXL: Config = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
}
UMT5_XXL: Config = T5_XXL | {"model_type": "umt5", "vocab_size": 256384}
LLAMA3_8B: Config = {
    "model_type": "llama",
    "vocab_size": 128320,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "pad_token_id": 128258,
}
MISTRAL3_24B: Config = {
    "model_type": "mistral3",
    "tie_word_embeddings": False,
    "image_token_index": 10,
    "spatial_merge_size": 2,
    "text_config": {
        "model_type": "mistral",
        "vocab_size": 131072,
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e9,
        "sliding_window": None,
    },
    "vision_config": {
        "model_type": "pixtral",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 1540,
        "patch_size": 14,
    },
}
GEMMA3_12B: Config = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text",
        "vocab_size": 262208,
        "hidden_size": 3840,
        "intermediate_size": 15360,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 1024,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 896,
        "patch_size": 14,
        "vision_use_head": False,
    },
}

VAE: Config = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
VAE_FLUX: Config = VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159}
VAE_SD3: Config = VAE | {"scaling_factor": 1.5305, "shift_factor": 0.0609}
VAE_SDXL: Config = VAE | {
    "latent_channels": 4,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
VAE_SD15: Config = VAE_SDXL | {"sample_size": 512, "scaling_factor": 0.18215, "force_upcast": False}
VAE_WAN: Config = {
    "z_dim": 16,
    "temperal_downsample": [False, True, True],
    "scale_factor_spatial": 8,
    "scale_factor_temporal": 4,
}


def flow(**config: JSON) -> Part:
    """The scheduler of most flow models."""
    return "FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 1000, **config}


def shifting(base: float, most: float, **config: JSON) -> Part:
    """The same, with a shift that grows with the number of image tokens."""
    sizes = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": base, "max_shift": most}
    return flow(**sizes | {"use_dynamic_shifting": True} | config)


def unipc(shift: float) -> Part:
    """Wan's scheduler: UniPC on the levels of a flow."""
    flow_keys: Config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    return "UniPCMultistepScheduler", {"num_train_timesteps": 1000, "solver_order": 2, **flow_keys}
