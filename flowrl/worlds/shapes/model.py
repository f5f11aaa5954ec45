"""The architecture of the shapes pipeline: a FluxPipeline of 2 million parameters for 32 x 32 pixels."""

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from flowrl.worlds.shapes.render import SIZE
from flowrl.worlds.shapes.tokenizers import MAX_LENGTH, clip_tokenizer, t5_tokenizer

LATENT_CHANNELS = 4
TEXT_DIM = 64
# what every call of the pipeline is given: without them FLUX draws 512 pixels and pads captions to 512 tokens
CALL = {"height": SIZE, "width": SIZE, "max_sequence_length": MAX_LENGTH, "guidance_scale": 1.0}


def make_vae() -> AutoencoderKL:
    """An untrained autoencoder: 32 x 32 pixels to 8 x 8 latents of 4 channels (235 thousand parameters)."""
    channels = (16, 32, 32)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        shift_factor=0.0,  # None, the default of the class, would make FluxPipeline fail at decode
    )


def make_pipeline(vae: AutoencoderKL) -> FluxPipeline:
    """An untrained pipeline around `vae`; its caller seeds torch."""
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(clip),
        hidden_size=TEXT_DIM,
        intermediate_size=2 * TEXT_DIM,
        projection_dim=TEXT_DIM,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=clip.bos_token_id,
        eos_token_id=clip.eos_token_id,
        pad_token_id=clip.pad_token_id,
    )
    text_2 = T5Config(
        vocab_size=len(t5),
        d_model=TEXT_DIM,
        d_kv=16,
        d_ff=2 * TEXT_DIM,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        dropout_rate=0.0,
    )
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=TEXT_DIM,
        pooled_projection_dim=TEXT_DIM,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=clip,
        text_encoder_2=T5EncoderModel(text_2),
        tokenizer_2=t5,
        transformer=transformer,
    )


def encode_captions(pipe: FluxPipeline, captions: list[str]) -> tuple[Tensor, Tensor]:
    """T5 states [B, 16, 64] and pooled CLIP state [B, 64], with gradient; equal captions are encoded once."""
    unique = list(dict.fromkeys(captions))
    options = {"padding": "max_length", "max_length": MAX_LENGTH, "truncation": True, "return_tensors": "pt"}
    pooled = pipe.text_encoder(pipe.tokenizer(unique, **options).input_ids).pooler_output
    states = pipe.text_encoder_2(pipe.tokenizer_2(unique, **options).input_ids)[0]
    index = torch.tensor([unique.index(c) for c in captions])
    return states[index], pooled[index]


def velocity(pipe: FluxPipeline, x: Tensor, s: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
    """v = eps - x_0 at packed latents x [B, 16, 16] and noise levels s [B]."""
    side = SIZE // (2 * pipe.vae_scale_factor)
    image_ids = pipe._prepare_latent_image_ids(1, side, side, x.device, torch.float32)
    return pipe.transformer(
        hidden_states=x,
        timestep=s,
        encoder_hidden_states=states,
        pooled_projections=pooled,
        txt_ids=torch.zeros(states.shape[1], 3),
        img_ids=image_ids,
        return_dict=False,
    )[0]


def pack(latents: Tensor) -> Tensor:
    """Latents [B, C, H, W] as FLUX's tokens [B, H/2 * W/2, 4 C]."""
    return FluxPipeline._pack_latents(latents, *latents.shape)
