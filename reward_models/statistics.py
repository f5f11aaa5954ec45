"""Plain statistics of pictures as rewards: they measure no quality, and a policy games them at once.

Use them to test a guard, or as witnesses (weight 0) next to a learned reward that colours and edges can fool. The
formulas are those of the metrics samples/*, in parts/vision/looks.py; colours are measured on pictures downscaled to
256 pixels per side, sharpness on every pixel. A video has the mean over its frames. `score` is the same number, with
gradient.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowrl.contracts import Samples
from reward_models.parts import inputs
from reward_models.parts.vision import looks


class _Statistic:
    """A number of a picture that is also differentiable."""

    formula: Callable[[Tensor], Tensor]
    full = False  # whether it has to see every pixel
    differentiable = True  # by `score`

    def score(self, images: Tensor, texts: Sequence[str] | None = None) -> Tensor:
        """The statistic [B] of images float [B, 3, H, W] in [0, 1], with gradient; texts are not read.

        It is the number that a call returns, whose pictures are not rounded to 8 bits either.
        """
        x = inputs.check_pixels(type(self).__name__, images, 4)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return type(self).formula(x if self.full else looks.downscale(x))

    @torch.no_grad()
    def mean_over_frames(self, samples: Samples) -> Tensor:
        """float32 [B]: the mean over each sample's frames; NaN where a pixel is not finite."""
        frames = inputs.frames(type(self).__name__, samples)
        scores = torch.full((len(samples),), torch.nan)
        for i in range(len(samples)):
            if not inputs.is_unscorable(frames[i : i + 1]):
                scores[i] = self.score(frames[i]).mean()
        return scores


class saturation(_Statistic):  # noqa: N801 - recipes name it
    """Mean HSV saturation of the pixels, 0 (grey) to 1: a reward that is easy to game."""

    formula = staticmethod(looks.saturation)

    def __call__(self, samples: Samples) -> Tensor:
        """float32 [B] in [0, 1]."""
        return self.mean_over_frames(samples)


class brightness(_Statistic):  # noqa: N801 - recipes name it
    """Mean of pixels and channels, 0 (black) to 1 (white)."""

    formula = staticmethod(looks.brightness)

    def __call__(self, samples: Samples) -> Tensor:
        """float32 [B] in [0, 1]."""
        return self.mean_over_frames(samples)


class contrast(_Statistic):  # noqa: N801 - recipes name it
    """Standard deviation of the luma, 0 (flat) to 0.5 (half black, half white)."""

    formula = staticmethod(looks.contrast)

    def __call__(self, samples: Samples) -> Tensor:
        """float32 [B] in [0, 0.5]."""
        return self.mean_over_frames(samples)


class sharpness(_Statistic):  # noqa: N801 - recipes name it
    """Root mean square of the luma's Laplacian, 0 (flat) to 4 (a checkerboard of pixels)."""

    formula = staticmethod(looks.sharpness)
    full = True

    def __call__(self, samples: Samples) -> Tensor:
        """float32 [B] in [0, 4]."""
        return self.mean_over_frames(samples)
