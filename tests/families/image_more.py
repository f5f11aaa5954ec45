"""More text-to-image families: FLUX.2, Sana, Cosmos2, Kandinsky5, Lumina2, HiDream, AuraFlow, CogView4, Chroma."""

from __future__ import annotations

import diffusers as df
from diffusers import DiffusionPipeline
from torch import nn

from . import text
from .base import Family, finish, flow_euler, image_vae8, randomize, wan_vae
from .image import DYNAMIC, NEGATIVE, SIZE

KANDINSKY_TEMPLATE = "<|im_start|>user\n{}<|im_end|>"


def flux2_parts(guidance: bool = False) -> dict[str, object]:
    """Components of the FLUX.2 klein pipelines; text features of three Qwen3 layers are concatenated."""
    transformer = df.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * text.WIDTH,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
    vae = df.AutoencoderKLFlux2(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=32,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return {
        "scheduler": flow_euler(**DYNAMIC),
        "vae": randomize(vae, 51),
        "text_encoder": text.qwen3(causal=True),
        "tokenizer": text.qwen_tokenizer(),
        "transformer": randomize(transformer, 61),
    }


def flux2_klein() -> DiffusionPipeline:
    """FLUX.2 klein (base, not distilled): CFG against the empty prompt."""
    return finish(df.Flux2KleinPipeline(**flux2_parts(), is_distilled=False))


def flux2() -> DiffusionPipeline:
    """FLUX.2 dev: Mistral3 features and a guidance embedding. A plain tokenizer takes the place of its processor."""
    parts = flux2_parts(guidance=True) | {"text_encoder": text.mistral3()}
    pipe = df.Flux2Pipeline(**parts)
    pipe.system_message = "s"
    return finish(pipe)


def sana() -> DiffusionPipeline:
    """Sana with a flow-matching Euler scheduler and linear attention."""
    transformer = df.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=text.WIDTH,
        sample_size=8,
    )
    vae = df.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41,
    )
    pipe = df.SanaPipeline(
        tokenizer=text.gemma_tokenizer(),
        text_encoder=text.gemma2(),
        vae=randomize(vae, 52),
        transformer=randomize(transformer, 62),
        scheduler=flow_euler(),
    )
    return finish(pipe)


class AcceptAll(df.ModelMixin):
    """Takes the place of the Cosmos guardrail (an optional package with downloads) for random weights in tests."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(1, 1)

    def check_text_safety(self, prompt: str) -> bool:
        """Accept any prompt."""
        return True

    def check_video_safety(self, frames: object) -> object:
        """Return the frames unchanged."""
        return frames


def cosmos2() -> DiffusionPipeline:
    """Cosmos-Predict2 text to image: Karras sigmas from 80 to 0.002 and EDM preconditioning around step()."""
    transformer = df.CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=text.WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        patch_size=(1, 2, 2),
        rope_scale=(2.0, 1.0, 1.0),
        concat_padding_mask=True,
        extra_pos_embed_type=None,
    )
    pipe = df.Cosmos2TextToImagePipeline(
        text_encoder=text.t5_text(),
        tokenizer=text.t5_tokenizer(),
        transformer=randomize(transformer, 63),
        vae=wan_vae(4),
        scheduler=df.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=AcceptAll(),
    )
    return finish(pipe)


def kandinsky_transformer() -> df.Kandinsky5Transformer3DModel:
    """The Kandinsky5 denoiser (channels last)."""
    model = df.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=text.WIDTH,
        in_text_dim2=text.WIDTH,
        time_dim=16,
        patch_size=(1, 2, 2),
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 2, 2),
    )
    return randomize(model, 64)


def kandinsky5() -> DiffusionPipeline:
    """Kandinsky 5 text to image; its fixed resolutions and long prompt template are replaced by tiny ones."""
    pipe = df.Kandinsky5T2IPipeline(
        transformer=kandinsky_transformer(),
        vae=image_vae8(),
        text_encoder=text.qwen25_vl(),
        tokenizer=text.qwen_vl_processor(),
        text_encoder_2=text.clip_text(),
        tokenizer_2=text.clip_tokenizer(),
        scheduler=flow_euler(shift=5.0),
    )
    pipe.resolutions = [(32, 32)]
    pipe.prompt_template, pipe.prompt_template_encode_start_idx = KANDINSKY_TEMPLATE, 3
    return finish(pipe)


def families() -> list[Family]:
    """The families of this file."""
    negative = {"negative_prompt": NEGATIVE}
    return [
        Family(
            "flux2_klein",
            flux2_klein,
            SIZE | {"guidance_scale": 3.0, "max_sequence_length": 64, "text_encoder_out_layers": (1, 2, 3)},
            notes="empirical mu; two forwards; no negative_prompt argument",
        ),
        Family(
            "flux2",
            flux2,
            SIZE | {"guidance_scale": 3.0, "max_sequence_length": 64, "text_encoder_out_layers": (1, 2, 3)},
            notes="one forward per step, guidance embedded",
        ),
        Family(
            "sana",
            sana,
            {"height": 32, "width": 32} | negative
            | {"guidance_scale": 3.0, "max_sequence_length": 48, "use_resolution_binning": False,
               "complex_human_instruction": None},
            notes="CFG as one forward on 2R rows",
        ),
        Family(
            "cosmos2",
            cosmos2,
            SIZE | negative | {"guidance_scale": 3.0, "max_sequence_length": 48},
            notes="sigmas > 1, scheduler.sigmas[i] read and sigmas[-1] written by the pipeline, last step has dt=0",
            tags=frozenset({"index", "last_step_deterministic", "detached_decode"}),
        ),
        Family(
            "kandinsky5",
            kandinsky5,
            {"height": 32, "width": 32, "guidance_scale": 3.0, "max_sequence_length": 64} | negative,
            notes="text padding is not masked: a row depends on the longest prompt of its batch",
            tags=frozenset({"padding"}),
        ),
    ]  # fmt: skip
