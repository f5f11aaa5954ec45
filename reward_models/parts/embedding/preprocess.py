"""The preprocessing of a vision model: resize, crop or pad, normalise.

One `Preprocess` does it in two ways. `pictures` resizes 8-bit pictures with Pillow, as the published scores were
computed. `tensors` resizes floating point as Pillow does, widths first and clamped to [0, 1] after each axis, but
without rounding to 8 bits, so that there is a gradient: a pixel differs by little more than one of 256 levels, even for
noise. Pillow 13 resizes the heights of tall pictures first; if bicubic overshoots there, noise differs by some levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
Mode = Literal["shortest", "longest", "letter_box", "squash"]


@dataclass(frozen=True)
class Preprocess:
    """How pictures become the input of a model, float32 [B, 3, *size].

    mode: "shortest" scales the shortest side to `side` (size, if None) and crops the centre; "longest" scales the
    picture to fit into size and pads it with black, centred, and "letter_box" does so with HPSv2's rounding, which
    differs by a pixel at sizes such as 320 x 165; "squash" disregards proportions.
    floor: an odd remainder of a crop goes to the right and bottom (transformers), not to the even offset (torchvision).
    """

    size: tuple[int, int]
    mode: Mode = "shortest"
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    interpolation: str = "bicubic"
    side: int | None = None
    floor: bool = False

    def __post_init__(self):
        if self.mode not in get_args(Mode):
            raise ValueError(f"resize mode {self.mode!r}: accepted are {', '.join(get_args(Mode))}")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"interpolation {self.interpolation!r}: accepted are bicubic and bilinear")

    def tensors(self, images: Tensor) -> Tensor:
        """The model's input [B, 3, *size] of images float [B, 3, H, W] in [0, 1], with gradient to them."""
        return self._normalise(self.fit(images, clamped=True))

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """The model's input [B, 3, *size] of pictures of any sizes, on the CPU. They are converted to RGB first."""
        fitted = [transforms.pil_to_tensor(self.fit(one.convert("RGB"))) for one in pictures]
        return self._normalise(torch.stack(fitted).float() / 255) if fitted else torch.zeros(0, 3, *self.size)

    def fit(self, image, clamped: bool = False):
        """A picture, or images [..., H, W], resized and then cropped or padded to `size`.

        Bicubic overshoots [0, 1] if images are not `clamped` after each axis.
        """
        height, width = _shape(image)
        new = self.scaled_size(height, width)
        for size in [(height, new[1]), new] if clamped else [new]:
            if size != _shape(image):
                mode = InterpolationMode(self.interpolation)
                image = transforms.resize(image, list(size), interpolation=mode, antialias=True)
            image = image.clamp(0, 1) if clamped else image
        room = [wanted - have for wanted, have in zip(self.size, new, strict=True)]
        if max(room) > 0:
            before = [max(0, spare) // 2 for spare in room]
            after = [max(0, spare) - first for spare, first in zip(room, before, strict=True)]
            image = transforms.pad(image, [before[1], before[0], after[1], after[0]], fill=0)
        top, left = (self._offset(max(0, -spare)) for spare in room)
        return transforms.crop(image, top, left, *self.size) if min(room) < 0 else image

    def scaled_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the resize, before crop or padding."""
        if self.mode == "squash":
            return self.size
        if self.mode == "longest":
            ratio = max(height / self.size[0], width / self.size[1])
            return max(1, round(height / ratio)), max(1, round(width / ratio))
        if self.mode == "letter_box":
            scale = min(self.size[0] / height, self.size[1] / width)
            return max(1, round(height * scale)), max(1, round(width * scale))
        if self.size[0] != self.size[1] and self.side is None:
            ratio = min(height / self.size[0], width / self.size[1])
            return round(height / ratio), round(width / ratio)
        side, short = self.side or self.size[0], min(height, width)
        long = int(side * max(height, width) / short)
        return (side, long) if height <= width else (long, side)

    def _offset(self, rest: int) -> int:
        return rest // 2 if self.floor else int(round(rest / 2.0))

    def _normalise(self, pixels: Tensor) -> Tensor:
        mean, std = (pixels.new_tensor(value).view(-1, 1, 1) for value in (self.mean, self.std))
        return (pixels - mean) / std


def _shape(image: Tensor | Image.Image) -> tuple[int, int]:
    return (image.height, image.width) if isinstance(image, Image.Image) else (image.shape[-2], image.shape[-1])
