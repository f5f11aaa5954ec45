"""The Family record and the helpers shared by every tiny pipeline: seeded weights, tiny VAEs, conditioning images."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLQwenImage, AutoencoderKLWan, DiffusionPipeline
from diffusers import FlowMatchEulerDiscreteScheduler as FlowEuler
from PIL import Image
from torch import nn

RowArgs = Callable[[list[str]], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """A tiny random pipeline of one family, and how to call it.

    ``call`` holds the keyword arguments that are the same for any number of prompts; ``rows`` those that need one
    entry per prompt (images). ``batched_call(prompts)`` joins them with the prompts into a fresh dictionary.

    Tags: ``index`` (the loop index or scheduler.sigmas[i] matters), ``mutates`` (edits the caller's prompt list),
    ``padding`` (a row depends on the longest prompt of its batch), ``two_schedulers`` (deepcopied scheduler),
    ``fewer_steps`` (runs fewer steps than asked for), ``overwrites`` (replaces part of the state between steps),
    ``conditioning_generator`` (draws more than the initial noise from generator), ``per_token`` (per-token timesteps),
    ``kv_cache`` (cache filled at step 0), ``stateful_guidance`` (guidance carries state from step to step),
    ``inverted_sigmas`` (sigmas run upwards), ``last_step_deterministic`` (dt = 0 at the end), ``detached_decode`` (no
    gradient through output_type="pt"), ``inplace_state`` (step result written into the previous state).
    """

    name: str
    build: Callable[[], DiffusionPipeline]
    call: dict[str, Any]
    modules: tuple[str, ...] = ("transformer",)
    base: str = "euler"
    rows: RowArgs | None = None
    max_rows: int | None = None
    contract: bool = True
    notes: str = ""
    tags: frozenset[str] = field(default_factory=frozenset)

    def batched_call(self, prompts: list[str]) -> dict[str, Any]:
        """All keyword arguments for these prompts except generator, output_type and num_inference_steps."""
        if self.max_rows is not None and len(prompts) > self.max_rows:
            raise ValueError(f"{self.name} takes at most {self.max_rows} prompt(s) per call, not {len(prompts)}")
        kwargs = {key: list(value) if isinstance(value, list) else value for key, value in self.call.items()}
        kwargs.update(self.rows(prompts) if self.rows is not None else {})
        return {"prompt": list(prompts), **kwargs}


def randomize(module: nn.Module, seed: int, gain: float = 1.0) -> nn.Module:
    """Give every parameter a seeded random value: matrices ~ gain/sqrt(fan_in), norm scales near 1, biases small."""
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in module.named_parameters():
            noise = torch.randn(param.shape, generator=gen)
            if param.ndim >= 2:
                fan_in = max(param[0].numel(), 1)
                param.copy_(noise * gain * fan_in**-0.5)
            elif name.endswith("weight"):
                param.copy_(1.0 + 0.1 * noise)
            else:
                param.copy_(0.1 * noise)
    return module.eval().requires_grad_(False)


def finish(pipe: DiffusionPipeline, *denoisers: str) -> DiffusionPipeline:
    """Silence the progress bar and let the denoisers be trained (every other parameter stays frozen)."""
    pipe.set_progress_bar_config(disable=True)
    for name in denoisers or ("transformer",):
        getattr(pipe, name).requires_grad_(True)
    return pipe


def image_for(text: str, size: int = 16) -> Image.Image:
    """A random RGB image that is a function of the text, so that a row keeps its image in any batch."""
    gen = torch.Generator().manual_seed(zlib.crc32(text.encode()))
    pixels = torch.randint(0, 256, (size, size, 3), generator=gen, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def pixels_for(prompts: list[str], size: int = 16) -> torch.Tensor:
    """The same images as one [R, 3, size, size] tensor in [0, 1]."""
    rows = [torch.frombuffer(bytearray(image_for(p, size).tobytes()), dtype=torch.uint8) for p in prompts]
    return torch.stack(rows).reshape(-1, size, size, 3).permute(0, 3, 1, 2).float() / 255


def flow_euler(**kwargs: Any) -> FlowEuler:
    """FlowMatchEulerDiscreteScheduler with static shift 3 unless told otherwise."""
    return FlowEuler(**({"shift": 3.0} | kwargs))


def image_vae(latent_channels: int = 4, seed: int = 11, **kwargs: Any) -> AutoencoderKL:
    """AutoencoderKL with spatial factor 2, shift and scaling factor as the flow-matching families have them."""
    config: dict[str, Any] = {
        "block_out_channels": (4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "latent_channels": latent_channels,
        "norm_num_groups": 2,
        "sample_size": 16,
        "scaling_factor": 1.5,
        "shift_factor": 0.06,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    return randomize(AutoencoderKL(**(config | kwargs)), seed)


def image_vae8(**kwargs: Any) -> AutoencoderKL:
    """The same with spatial factor 8, for the pipelines that take this factor for granted."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return image_vae(4, block_out_channels=(4,) * 4, **blocks, **kwargs)


def qwen_vae(z_dim: int = 4, seed: int = 12) -> AutoencoderKLQwenImage:
    """AutoencoderKLQwenImage (8x spatial, as the pipelines assume from the number of temporal levels)."""
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=z_dim,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1] * z_dim,
        latents_std=[1.2] * z_dim,
    )
    return randomize(vae, seed)


def wan_vae(z_dim: int = 4, seed: int = 13) -> AutoencoderKLWan:
    """AutoencoderKLWan: 8x spatial, 4x temporal."""
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=z_dim,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1] * z_dim,
        latents_std=[1.2] * z_dim,
    )
    return randomize(vae, seed)
