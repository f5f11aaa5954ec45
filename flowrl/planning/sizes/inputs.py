"""What a pipeline passes to its denoiser, as shapes on the meta device: one builder per class of pipeline.

Each follows the pipeline's own arithmetic of sizes (packing, compression, padding of texts). Guidance: SD3 doubles the
batch, the others call the denoiser a second time, for the negative prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl.untyped import JSON

Config = dict[str, JSON]


@dataclass(frozen=True)
class DenoiserCalls:
    """The denoiser's calls in one step: the arguments of each, the shape of one row's latent, and that of the latent as
    the autoencoder decodes it."""

    calls: list[dict[str, JSON]]
    latent: tuple[int, ...]
    decoded: tuple[int, ...]


@dataclass(frozen=True)
class CallSetting:
    """What the shapes depend on. pipeline: the recipe's arguments of the call; configs: by component, with defaults;
    tokens: of the longest prompt and of the negative one, for texts that are not padded to a fixed length; padded: the
    length that the first tokenizer pads to."""

    rows: int
    pipeline: Config
    configs: dict[str, Config]
    tokens: tuple[int, int]
    dtype: torch.dtype
    padded: int = 77

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor [*shape] on the meta device, which takes no memory."""
        return torch.empty(shape, device="meta", dtype=dtype or self.dtype)

    def argument(self, name: str, default: JSON) -> JSON:
        """An argument of the call, or the default where the recipe leaves it out."""
        value = self.pipeline.get(name)
        return default if value is None else value


def flux(setting: CallSetting, config: Config) -> DenoiserCalls:
    """FluxPipeline: packed latents [seq, channels], T5 padded to max_sequence_length, guidance embedded."""
    scale = 2 ** (len(setting.configs["vae"]["block_out_channels"]) - 1)
    height, width = (setting.argument(side, 128 * scale) // (2 * scale) for side in ("height", "width"))
    seq, text = height * width, setting.argument("max_sequence_length", 512)
    rows = setting.rows
    arguments = {
        "hidden_states": setting.empty(rows, seq, config["in_channels"]),
        "encoder_hidden_states": setting.empty(rows, text, config["joint_attention_dim"]),
        "pooled_projections": setting.empty(rows, config["pooled_projection_dim"]),
        "timestep": setting.empty(rows),
        "img_ids": setting.empty(seq, 3),
        "txt_ids": setting.empty(text, 3),
        "guidance": setting.empty(rows, dtype=torch.float32) if config["guidance_embeds"] else None,
    }
    twice = setting.argument("true_cfg_scale", 1.0) > 1 and "negative_prompt" in setting.pipeline
    decoded = (setting.configs["vae"]["latent_channels"], 2 * height, 2 * width)
    return DenoiserCalls([arguments] * (1 + twice), (seq, config["in_channels"]), decoded)


def sd3(setting: CallSetting, config: Config) -> DenoiserCalls:
    """StableDiffusion3Pipeline: latents [channels, h, w], CLIP's tokens and T5's in one sequence."""
    scale = 2 ** (len(setting.configs["vae"]["block_out_channels"]) - 1)
    height, width = (setting.argument(side, config["sample_size"] * scale) // scale for side in ("height", "width"))
    text = setting.padded + setting.argument("max_sequence_length", 256)
    rows = setting.rows * (2 if setting.argument("guidance_scale", 7.0) > 1 else 1)
    latent = (config["in_channels"], height, width)
    arguments = {
        "hidden_states": setting.empty(rows, *latent),
        "encoder_hidden_states": setting.empty(rows, text, config["joint_attention_dim"]),
        "pooled_projections": setting.empty(rows, config["pooled_projection_dim"]),
        "timestep": setting.empty(rows),
    }
    return DenoiserCalls([arguments], latent, latent)


def qwen_image(setting: CallSetting, config: Config) -> DenoiserCalls:
    """QwenImagePipeline: packed latents, texts as long as the longest prompt of the call."""
    scale = 2 ** len(setting.configs["vae"]["temperal_downsample"])
    height, width = (setting.argument(side, 128 * scale) // (2 * scale) for side in ("height", "width"))
    rows, seq = setting.rows, height * width
    longest = setting.argument("max_sequence_length", 512)
    twice = setting.argument("true_cfg_scale", 4.0) > 1 and "negative_prompt" in setting.pipeline
    calls = [
        {
            "hidden_states": setting.empty(rows, seq, config["in_channels"]),
            "encoder_hidden_states": setting.empty(rows, min(text, longest), config["joint_attention_dim"]),
            "encoder_hidden_states_mask": None,
            "timestep": setting.empty(rows),
            "img_shapes": [[(1, height, width)]] * rows,
        }
        for text in setting.tokens[: 1 + twice]
    ]
    decoded = (setting.configs["vae"]["z_dim"], 1, 2 * height, 2 * width)
    return DenoiserCalls(calls, (seq, config["in_channels"]), decoded)


def wan(setting: CallSetting, config: Config) -> DenoiserCalls:
    """WanPipeline: latents [channels, frames, h, w], texts padded to max_sequence_length."""
    vae = setting.configs["vae"]
    spatial, temporal = vae.get("scale_factor_spatial") or 8, vae.get("scale_factor_temporal") or 4
    height, width = setting.argument("height", 480) // spatial, setting.argument("width", 832) // spatial
    frames = (setting.argument("num_frames", 81) - 1) // temporal + 1
    latent = (config["in_channels"], frames, height, width)
    arguments = {
        "hidden_states": setting.empty(setting.rows, *latent),
        "encoder_hidden_states": setting.empty(
            setting.rows, setting.argument("max_sequence_length", 512), config["text_dim"]
        ),
        "timestep": setting.empty(setting.rows, dtype=torch.float32),
    }
    calls = [arguments] * (2 if setting.argument("guidance_scale", 5.0) > 1 else 1)
    return DenoiserCalls(calls, latent, latent)


BUILDERS: dict[str, Callable[[CallSetting, Config], DenoiserCalls]] = {
    "FluxPipeline": flux,
    "StableDiffusion3Pipeline": sd3,
    "QwenImagePipeline": qwen_image,
    "WanPipeline": wan,
}
