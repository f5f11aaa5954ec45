"""Published pipelines of images: facts of their configs, see parts.py."""

from flowrl.known.language import QWEN3_4B, QWEN3_8B, QWEN25_VL_7B
from flowrl.known.parts import (
    CLIP_G,
    CLIP_L,
    MISTRAL3_24B,
    T5_XXL,
    VAE_FLUX,
    VAE_SD3,
    VAE_SD15,
    VAE_SDXL,
    Known,
    Part,
    flow,
    shifting,
)
from flowrl.untyped import JSON

_NOISE: Part = (
    "EulerDiscreteScheduler",
    {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "steps_offset": 1,
        "timestep_spacing": "leading",
    },
)


def _flux(pipeline: str, scheduler: Part, *, guidance: bool) -> Known:
    transformer = {
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": guidance,
    }
    parts: dict[str, Part] = {
        "text_encoder": ("CLIPTextModel", CLIP_L),
        "text_encoder_2": ("T5EncoderModel", T5_XXL),
        "transformer": ("FluxTransformer2DModel", transformer),
        "vae": ("AutoencoderKL", VAE_FLUX),
    }
    return Known(pipeline, parts, scheduler, {"tokenizer": "CLIPTokenizer", "tokenizer_2": "T5TokenizerFast"})


def _flux2(pipeline: str, text: Part, tokenizer: str, *, distilled: bool | None = None, **transformer: JSON) -> Known:
    whole = {"in_channels": 128, "attention_head_dim": 128, "guidance_embeds": distilled is None, **transformer}
    parts: dict[str, Part] = {
        "text_encoder": text,
        "transformer": ("Flux2Transformer2DModel", whole),
        "vae": ("AutoencoderKLFlux2", {"latent_channels": 32, "block_out_channels": [128, 256, 512, 512]}),
    }
    settings = {} if distilled is None else {"is_distilled": distilled}
    return Known(pipeline, parts, shifting(0.5, 1.15, shift=3.0), {"tokenizer": tokenizer}, settings)


def _sd3(layers: int, positions: int, dual: int) -> Known:
    transformer = {
        "sample_size": 128,
        "in_channels": 16,
        "patch_size": 2,
        "num_layers": layers,
        "attention_head_dim": 64,
        "num_attention_heads": layers,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 64 * layers,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": positions,
        "dual_attention_layers": list(range(dual)),
        "qk_norm": "rms_norm",
    }
    parts: dict[str, Part] = {
        "text_encoder": ("CLIPTextModelWithProjection", CLIP_L),
        "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_G),
        "text_encoder_3": ("T5EncoderModel", T5_XXL),
        "transformer": ("SD3Transformer2DModel", transformer),
        "vae": ("AutoencoderKL", VAE_SD3),
    }
    tokenizers = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer", "tokenizer_3": "T5TokenizerFast"}
    return Known("StableDiffusion3Pipeline", parts, flow(shift=3.0), tokenizers)


def _qwen_image(pipeline: str, tokenizers: dict[str, str]) -> Known:
    parts: dict[str, Part] = {
        "text_encoder": ("Qwen2_5_VLForConditionalGeneration", QWEN25_VL_7B),
        "transformer": ("QwenImageTransformer2DModel", {"in_channels": 64, "num_layers": 60, "patch_size": 2}),
        "vae": ("AutoencoderKLQwenImage", {"z_dim": 16, "temperal_downsample": [False, True, True]}),
    }
    scheduler = shifting(0.5, 0.9, max_image_seq_len=8192, shift=1.0, shift_terminal=0.02)
    return Known(pipeline, parts, scheduler, {"tokenizer": "Qwen2Tokenizer", **tokenizers})


def _z_image() -> Known:
    transformer = {"in_channels": 16, "dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30}
    parts: dict[str, Part] = {
        "text_encoder": ("Qwen3Model", QWEN3_4B),
        "transformer": ("ZImageTransformer2DModel", transformer),
        "vae": ("AutoencoderKL", VAE_FLUX),
    }
    return Known("ZImagePipeline", parts, flow(shift=3.0), {"tokenizer": "Qwen2Tokenizer"})


_SDXL_UNET = {
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
}
_FLUX_SHIFT = shifting(0.5, 1.15, shift=3.0)
_KLEIN = {"tokenizer": "Qwen2TokenizerFast", "distilled": True}

IMAGES = {
    "black-forest-labs/FLUX.1-dev": _flux("FluxPipeline", _FLUX_SHIFT, guidance=True),
    "black-forest-labs/FLUX.1-schnell": _flux("FluxPipeline", flow(shift=1.0), guidance=False),
    "black-forest-labs/FLUX.1-Kontext-dev": _flux("FluxKontextPipeline", _FLUX_SHIFT, guidance=True),
    "black-forest-labs/FLUX.2-dev": _flux2(
        "Flux2Pipeline",
        ("Mistral3ForConditionalGeneration", MISTRAL3_24B),
        "PixtralProcessor",
        num_layers=8,
        num_single_layers=48,
        num_attention_heads=48,
        joint_attention_dim=15360,
    ),
    "black-forest-labs/FLUX.2-klein-4B": _flux2(
        "Flux2KleinPipeline",
        ("Qwen3ForCausalLM", QWEN3_4B),
        **_KLEIN,
        num_layers=5,
        num_single_layers=20,
        num_attention_heads=24,
        joint_attention_dim=7680,
    ),
    "black-forest-labs/FLUX.2-klein-9B": _flux2(
        "Flux2KleinPipeline",
        ("Qwen3ForCausalLM", QWEN3_8B),
        **_KLEIN,
        num_layers=8,
        num_single_layers=24,
        num_attention_heads=32,
        joint_attention_dim=12288,
    ),
    "stabilityai/stable-diffusion-3.5-medium": _sd3(24, 384, 13),
    "stabilityai/stable-diffusion-3.5-large": _sd3(38, 192, 0),
    "stabilityai/stable-diffusion-xl-base-1.0": Known(
        "StableDiffusionXLPipeline",
        {
            "text_encoder": ("CLIPTextModel", CLIP_L),
            "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_G),
            "unet": ("UNet2DConditionModel", _SDXL_UNET),
            "vae": ("AutoencoderKL", VAE_SDXL),
        },
        _NOISE,
        {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"},
        {"force_zeros_for_empty_prompt": True},
    ),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": Known(
        "StableDiffusionPipeline",
        {
            "text_encoder": ("CLIPTextModel", CLIP_L),
            "unet": ("UNet2DConditionModel", {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}),
            "vae": ("AutoencoderKL", VAE_SD15),
        },
        _NOISE,
        {"tokenizer": "CLIPTokenizer"},
        {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False},
    ),
    "Qwen/Qwen-Image": _qwen_image("QwenImagePipeline", {}),
    "Qwen/Qwen-Image-Edit": _qwen_image("QwenImageEditPipeline", {"processor": "Qwen2VLProcessor"}),
    "Qwen/Qwen-Image-Edit-2509": _qwen_image("QwenImageEditPlusPipeline", {"processor": "Qwen2VLProcessor"}),
    "Tongyi-MAI/Z-Image-Turbo": _z_image(),
}
