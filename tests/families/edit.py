"""Image-conditioned families: FLUX.1 Kontext, img2img and inpaint, SD3 inpaint, Qwen-Image-Edit, FLUX.2 klein KV."""

from __future__ import annotations

from typing import Any

import diffusers as df
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus

from . import text
from .base import Family, finish, flow_euler, image_for, pixels_for, qwen_vae
from .image import DYNAMIC, NEGATIVE, SIZE, flux_parts, qwen_transformer, sd3_parts
from .image_more import flux2_parts


def kontext() -> DiffusionPipeline:
    """FLUX.1 Kontext: the image tokens follow the noise tokens in the sequence."""
    return finish(df.FluxKontextPipeline(**flux_parts(**DYNAMIC)))


def flux_img2img() -> DiffusionPipeline:
    """FLUX.1 img2img: starts from a noised image, so fewer steps run than were asked for."""
    return finish(df.FluxImg2ImgPipeline(**flux_parts()))


def flux_inpaint() -> DiffusionPipeline:
    """FLUX.1 inpaint: after each step the unmasked part of the state is overwritten."""
    return finish(df.FluxInpaintPipeline(**flux_parts()))


def sd3_inpaint() -> DiffusionPipeline:
    """SD3 inpaint: the same overwriting, on unpacked latents (the pipeline insists on 16 channels)."""
    return finish(df.StableDiffusion3InpaintPipeline(**sd3_parts(channels=16)))


def qwen_edit_parts() -> dict[str, object]:
    """Components of the Qwen-Image-Edit pipelines."""
    return {
        "scheduler": flow_euler(**DYNAMIC),
        "vae": qwen_vae(4),
        "text_encoder": text.qwen25_vl(),
        "tokenizer": text.qwen_tokenizer(),
        "processor": text.qwen_vl_processor(),
        "transformer": qwen_transformer(),
    }


def qwen_edit() -> DiffusionPipeline:
    """Qwen-Image-Edit. The pipeline scales its image to one megapixel; here that area is 32 x 32 (patched module)."""
    pipeline_qwenimage_edit.calculate_dimensions = lambda area, ratio: (32, 32, None)
    return finish(df.QwenImageEditPipeline(**qwen_edit_parts()))


def qwen_edit_plus() -> DiffusionPipeline:
    """Qwen-Image-Edit-Plus: several images, one prompt per call. Its image areas are patched in the same way."""
    pipeline_qwenimage_edit_plus.CONDITION_IMAGE_SIZE = pipeline_qwenimage_edit_plus.VAE_IMAGE_SIZE = 32 * 32
    return finish(df.QwenImageEditPlusPipeline(**qwen_edit_parts()))


def flux2_klein_kv() -> DiffusionPipeline:
    """FLUX.2 klein with a KV cache of the reference image, filled at the first step."""
    return finish(df.Flux2KleinKVPipeline(**flux2_parts()))


def half_mask(rows: int, size: int = 16) -> torch.Tensor:
    """[R, 1, size, size] masks: the left half is painted anew."""
    mask = torch.zeros(rows, 1, size, size)
    mask[..., : size // 2] = 1.0
    return mask


def image_rows(prompts: list[str]) -> dict[str, Any]:
    """One image per prompt as a single tensor."""
    return {"image": pixels_for(prompts)}


def inpaint_rows(prompts: list[str]) -> dict[str, Any]:
    """One image and mask per prompt."""
    return {"image": pixels_for(prompts), "mask_image": half_mask(len(prompts))}


def pil_rows(prompts: list[str]) -> dict[str, Any]:
    """One PIL image and negative prompt per prompt."""
    return {"image": [image_for(p, 32) for p in prompts], "negative_prompt": [NEGATIVE] * len(prompts)}


def plus_rows(prompts: list[str]) -> dict[str, Any]:
    """Two PIL images for the only prompt."""
    images = [image_for(p + suffix, 32) for p in prompts for suffix in ("a", "b")]
    return {"image": images, "negative_prompt": [NEGATIVE] * len(prompts)}


def families() -> list[Family]:
    """The families of this file."""
    flux_call = SIZE | {"guidance_scale": 3.5, "max_sequence_length": 48}
    overwrites = frozenset({"overwrites"})
    redraws = frozenset({"conditioning_generator"})
    kv_call = SIZE | {
        "image": image_for("reference", 64),
        "max_sequence_length": 64,
        "text_encoder_out_layers": (1, 2, 3),
    }
    return [
        Family(
            "kontext",
            kontext,
            flux_call | {"max_area": 256, "_auto_resize": False},
            rows=image_rows,
            notes="image [R,3,H,W]; the output is cut to the noise tokens before step()",
        ),
        Family(
            "qwen_edit",
            qwen_edit,
            {"height": 32, "width": 32, "true_cfg_scale": 3.0},
            rows=pil_rows,
            notes="list of R PIL images and R negative prompts",
        ),
        Family(
            "qwen_edit_plus",
            qwen_edit_plus,
            {"height": 32, "width": 32, "true_cfg_scale": 3.0},
            rows=plus_rows,
            max_rows=1,
            notes="raises for more than one prompt; two images per prompt",
        ),
        Family(
            "flux_img2img",
            flux_img2img,
            flux_call | {"strength": 0.75},
            rows=image_rows,
            notes="3 of 4 steps run (strength 0.75); the VAE posterior is sampled from generator",
            tags=redraws | {"fewer_steps"},
        ),
        Family(
            "flux_inpaint",
            flux_inpaint,
            flux_call | {"strength": 1.0},
            rows=inpaint_rows,
            notes="right half of the state overwritten after each step",
            tags=redraws | overwrites,
        ),
        Family(
            "sd3_inpaint",
            sd3_inpaint,
            SIZE | {"guidance_scale": 3.0, "negative_prompt": NEGATIVE, "max_sequence_length": 48, "strength": 1.0},
            rows=inpaint_rows,
            notes="right half of the state overwritten after each step",
            tags=redraws | overwrites,
        ),
        Family(
            "flux2_klein_kv",
            flux2_klein_kv,
            kv_call,
            notes="KV cache filled at step 0 must be run for real; one reference image shared by all rows",
            tags=frozenset({"kv_cache"}),
        ),
    ]
