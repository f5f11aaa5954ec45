"""Published pipelines of videos: facts of their configs, see parts.py."""

from flowrl.known.parts import (
    CLIP_H_VISION,
    CLIP_L,
    GEMMA3_12B,
    LLAMA3_8B,
    UMT5_XXL,
    VAE_WAN,
    Config,
    Known,
    Part,
    shifting,
    unipc,
)
from flowrl.known.parts import flow as flow_scheduler
from flowrl.untyped import JSON

# latents of Wan 2.2's autoencoder, channel by channel (diffusers, scripts/convert_wan_to_diffusers.py)
_MEAN = """-.2289 -.0052 -.1323 -.2339 -.2799 .0174 .1838 .1557 -.1382 .0542 .2813 .0891 .1570 -.0098 .0375 -.1825
-.2246 -.1207 -.0698 .5109 .2665 -.2108 -.2158 .2502 -.2055 -.0322 .1109 .1567 -.0729 .0899 -.2799 -.1230
-.0313 -.1649 .0117 .0723 -.2839 -.2083 -.0520 .3748 .0152 .1957 .1433 -.2944 .3573 -.0548 -.1681 -.0667"""
_STD = """.4765 1.0364 .4514 1.1677 .5313 .4990 .4818 .5013 .8158 1.0344 .5894 1.0901 .6885 .6165 .8454 .4978
.5759 .3523 .7135 .6804 .5833 1.4146 .8986 .5659 .7069 .5338 .4889 .4917 .4069 .4999 .6866 .4093
.5709 .6065 .6415 .4944 .5726 1.2042 .5458 1.6887 .3971 1.0600 .3943 .5537 .5444 .4089 .7468 .7744"""
_VAE_WAN22: Config = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
    "temperal_downsample": [False, True, True],
    "latents_mean": [float(number) for number in _MEAN.split()],
    "latents_std": [float(number) for number in _STD.split()],
}


def _wan(
    sizes: tuple[int, int, int],
    shift: float,
    *,
    pipeline: str = "WanPipeline",
    vae: Config = VAE_WAN,
    seeing: bool = False,
    boundary: float | None = None,
    more: Config | None = None,
    **transformer: JSON,
) -> Known:
    """sizes: heads, layers, width of the feed-forward part; seeing: with an encoder of pictures; boundary: of the two
    denoisers of Wan 2.2, the level at which the second takes over."""
    heads, layers, width = sizes
    whole: Config = {"num_attention_heads": heads, "num_layers": layers, "ffn_dim": width, "in_channels": 16}
    whole |= {"patch_size": [1, 2, 2], **transformer}
    part: Part = ("WanTransformer3DModel", whole)
    parts: dict[str, Part] = {"text_encoder": ("UMT5EncoderModel", UMT5_XXL), "transformer": part}
    parts |= {"transformer_2": part} if boundary is not None else {}
    parts |= {"vae": ("AutoencoderKLWan", vae)}
    parts |= {"image_encoder": ("CLIPVisionModel", CLIP_H_VISION)} if seeing else {}
    tokenizers = {"tokenizer": "T5TokenizerFast"} | ({"image_processor": "CLIPImageProcessor"} if seeing else {})
    settings = {} if boundary is None else {"boundary_ratio": boundary}
    return Known(pipeline, parts, unipc(shift), tokenizers, settings | (more or {}))


_IMAGE = "WanImageToVideoPipeline"
_14B = (40, 40, 13824)

_HUNYUAN = Known(
    "HunyuanVideoPipeline",
    {
        "text_encoder": ("LlamaModel", LLAMA3_8B),
        "text_encoder_2": ("CLIPTextModel", CLIP_L),
        "transformer": (
            "HunyuanVideoTransformer3DModel",
            {"num_layers": 20, "num_single_layers": 40, "num_refiner_layers": 2, "guidance_embeds": True}
            | {"in_channels": 16, "patch_size": 2},
        ),
        "vae": (
            "AutoencoderKLHunyuanVideo",
            {"latent_channels": 16, "spatial_compression_ratio": 8, "temporal_compression_ratio": 4},
        ),
    },
    flow_scheduler(shift=7.0),
    {"tokenizer": "LlamaTokenizerFast", "tokenizer_2": "CLIPTokenizer"},
)
_CONNECTORS: Config = {
    "caption_channels": 3840,
    "text_proj_in_factor": 49,
    **{f"{kind}_connector_{name}": value for kind in ("video", "audio") for name, value in {
        "num_attention_heads": 30, "attention_head_dim": 128, "num_layers": 2, "num_learnable_registers": 128,
    }.items()},
    "connector_rope_base_seq_len": 4096,
    "rope_theta": 10000.0,
    "rope_double_precision": True,
    "rope_type": "split",
}  # fmt: skip
_LTX2 = Known(
    "LTX2Pipeline",
    {
        "text_encoder": ("Gemma3ForConditionalGeneration", GEMMA3_12B),
        "connectors": ("LTX2TextConnectors", _CONNECTORS),
        "transformer": (
            "LTX2VideoTransformer3DModel",
            {"num_layers": 48, "in_channels": 128, "caption_channels": 3840, "rope_type": "split", "patch_size": 1},
        ),
        "vae": (
            "AutoencoderKLLTX2Video",
            {
                "latent_channels": 128,
                "decoder_causal": False,
                "timestep_conditioning": False,
                "upsample_residual": [True] * 3,
            }
            | {"spatial_compression_ratio": 32, "temporal_compression_ratio": 8},
        ),
        "audio_vae": ("AutoencoderKLLTX2Audio", {"latent_channels": 8}),
        "vocoder": ("LTX2Vocoder", {}),
    },
    shifting(0.95, 2.05, base_image_seq_len=1024, shift_terminal=0.1),
    {"tokenizer": "GemmaTokenizerFast"},
)

VIDEOS = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": _wan((12, 30, 8960), 3.0),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": _wan(_14B, 3.0),
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": _wan(
        _14B, 3.0, pipeline=_IMAGE, seeing=True, image_dim=1280, added_kv_proj_dim=5120, in_channels=36
    ),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": _wan(_14B, 3.0, boundary=0.875),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": _wan(_14B, 3.0, pipeline=_IMAGE, boundary=0.9, in_channels=36),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": _wan(
        (24, 30, 14336), 5.0, vae=_VAE_WAN22, more={"expand_timesteps": True}, in_channels=48, out_channels=48
    ),
    "hunyuanvideo-community/HunyuanVideo": _HUNYUAN,
    "Lightricks/LTX-2": _LTX2,
}
