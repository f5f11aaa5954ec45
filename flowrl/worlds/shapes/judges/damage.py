"""Damages pictures by a known amount, and rates them: the shapes world's notion of beauty.

A clean picture is rated 10. Each of five kinds of damage takes its severity s, 0 to 1, off the rest:

    rating = 1 + 9 (1 - s_noise) (1 - s_blur) (1 - s_wash) (1 - s_tint) (1 - s_warp)

noise: normal, of deviation 0.2 s; blur: a Gaussian of 2 s pixels; wash: contrast falls by 0.8 s towards the mean tone
of the border; tint: saturation falls by s or, as often, rises to 1 + s; warp: silhouettes are bent by up to 3 s pixels.
"""

import random

import torch
from torch import Tensor
from torch.nn import functional

DAMAGES = ("noise", "blur", "wash", "tint", "warp")
NUMBERS = (0, 1, 1, 2)  # how many damages a picture has, drawn evenly


def draw_severities(number: int, rng: random.Random) -> Tensor:
    """Severities of the five damages for each picture, float32 [N, 5] in [0, 1]; most are 0."""
    table = torch.zeros(number, len(DAMAGES))
    for row in table:
        for k in rng.sample(range(len(DAMAGES)), rng.choice(NUMBERS)):
            row[k] = rng.random()
    return table


def rating(severities: Tensor) -> Tensor:
    """1 to 10, float32 [N], of severities [N, 5]."""
    return 1 + 9 * (1 - severities).prod(1)


def apply_damages(images: Tensor, severities: Tensor, generator: torch.Generator) -> Tensor:
    """The pictures [N, 3, H, W] in [0, 1] with damage of severities [N, 5] applied."""
    noise, blur, wash, tint, warp = severities[:, :, None, None, None].unbind(1)
    x = _warp(images, 3 * warp[:, 0, 0, 0], generator)
    x = _blur(x, 2 * blur)
    border = torch.cat([x[:, :, 0], x[:, :, -1], x[:, :, :, 0], x[:, :, :, -1]], -1).mean((1, 2))[:, None, None, None]
    x = border + (x - border) * (1 - 0.8 * wash)
    up = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    gray = x.mean(1, keepdim=True)
    x = gray + (x - gray) * torch.where(up, 1 + tint, 1 - tint)
    return (x + 0.2 * noise * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def _blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Each picture [N, 3, H, W] under a Gaussian of its own width [N, 1, 1, 1], in pixels."""
    at = torch.arange(-4.0, 5.0)
    kernel = torch.exp(-0.5 * (at / sigma.flatten()[:, None].clamp(min=1e-3)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)
    number, channels, height, width = x.shape
    flat = functional.pad(x, (4, 4, 4, 4), mode="replicate").reshape(1, number * channels, height + 8, width + 8)
    flat = functional.conv2d(flat, kernel[:, None, None, :], groups=number * channels)
    return functional.conv2d(flat, kernel[:, None, :, None], groups=number * channels).view(x.shape)


def _warp(x: Tensor, reach: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture bent by a smooth random field that moves no pixel by more than its reach [N], in pixels."""
    number, _, height, width = x.shape
    field = torch.rand(number, 2, 5, 5, generator=generator) * 2 - 1
    field = functional.interpolate(field, (height, width), mode="bicubic", align_corners=True).clamp(-1, 1)
    field = (field * reach[:, None, None, None]).permute(0, 2, 3, 1) * 2 / torch.tensor([width, height])
    still = functional.affine_grid(torch.eye(2, 3).expand(number, 2, 3), list(x.shape), align_corners=False)
    return functional.grid_sample(x, still + field, padding_mode="border", align_corners=False)
