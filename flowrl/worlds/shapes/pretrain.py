"""Pretraining of the shapes pipeline: an autoencoder, then the flow with its text encoders, from seeds alone.

Both run through `Stage`, which makes them resumable: the batch of step i is drawn from generators seeded by (seed, i).
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline
from torch import Tensor, nn

from flowrl.worlds.shapes.captions import draw, split
from flowrl.worlds.shapes.model import encode_captions, pack, velocity
from flowrl.worlds.shapes.render import render
from flowrl.worlds.stage import Cycle, Stage

KIND_WEIGHTS = {"single": 0.08, "count": 0.32, "pair": 0.2, "relation": 0.4}
POOL = 48_000  # rendered training scenes
CAPTION_DROP = 0.1  # share of empty captions, so that the model can be guided


def training_pool(seed: int) -> tuple[Tensor, list[str]]:
    """Rendered training scenes as uint8 [POOL, 3, 32, 32] and their captions."""
    train, _ = split()
    rng = random.Random(seed)
    scenes = draw(train, POOL, rng, KIND_WEIGHTS)
    images = [(render(scenes[i : i + 1000], rng) * 255).round().byte() for i in range(0, POOL, 1000)]
    return torch.cat(images), [s.caption for s in scenes]


def train_vae(vae: AutoencoderKL, images: Tensor, path: Path, *, steps: int, seed: int, batch: int = 32) -> None:
    """Fits the autoencoder (L1 + 2 MSE + 0.002 KL) to uint8 images [N, 3, 32, 32], and sets its scaling and shift
    factors from the latents."""
    vae.to(memory_format=torch.channels_last)
    stage = Stage("autoencoder", vae, path, cycles=[(steps, 0.25)], lr=2e-3, average=0.99)

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        index = torch.randint(len(images), (batch,), generator=generator)
        x = to_model_range(images[index]).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        error = vae.decode(posterior.sample(generator)).sample - x
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return error.abs().mean() + 2 * error.square().mean() + 2e-3 * kl

    stage.run(loss)
    stage.swap()
    vae.eval()
    latents = encode_images(vae, images[:4000])
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())


def train_flow(
    pipe: FluxPipeline,
    images: Tensor,
    captions: list[str],
    path: Path,
    *,
    cycles: Sequence[Cycle],
    seed: int,
    report: Callable[[int], str] | None = None,
    batch: int = 64,
) -> None:
    """Fits transformer and text encoders by flow matching (arXiv:2210.02747) with logit-normal noise levels.

    images: uint8 [N, 3, 32, 32], one for each of the captions.
    """
    config = pipe.vae.config
    data = pack((encode_images(pipe.vae, images) - config.shift_factor) * config.scaling_factor)
    module = nn.ModuleList([pipe.transformer, pipe.text_encoder, pipe.text_encoder_2])
    stage = Stage("flow", module, path, cycles=cycles, lr=1.5e-3, average=0.999)

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        index = torch.randint(len(data), (batch,), generator=generator)
        noise = torch.randn(data[index].shape, generator=generator)
        s = torch.randn(batch, generator=generator).sigmoid()
        dropped = torch.rand(batch, generator=generator) < CAPTION_DROP
        texts = ["" if drop else captions[i] for i, drop in zip(index.tolist(), dropped.tolist(), strict=True)]
        x = (1 - s[:, None, None]) * data[index] + s[:, None, None] * noise
        v = velocity(pipe, x, s, *encode_captions(pipe, texts))
        return (v - (noise - data[index])).square().mean()

    stage.run(loss, report)
    stage.swap()


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Posterior means [N, 4, 8, 8], neither shifted nor scaled, of uint8 images [N, 3, 32, 32]."""
    return torch.cat([vae.encode(to_model_range(chunk)).latent_dist.mode() for chunk in images.split(500)])


def to_model_range(images: Tensor) -> Tensor:
    """uint8 pixels as floats in [-1, 1]."""
    return images.float() / 127.5 - 1
