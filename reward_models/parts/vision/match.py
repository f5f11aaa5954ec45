"""Rewards that compare the embedding of a picture with that of its prompt."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from flowrl.contracts import Samples
from reward_models.parts.embedding.tower import Tower
from reward_models.parts.frames import by_frame, frame_count
from reward_models.parts.inputs import check_pixels
from reward_models.parts.model import Model


class Match(Model):
    """A reward of the cosine between a picture and its prompt; a video has the mean over its frames."""

    prefix = ""
    differentiable = True  # by `score`
    head: nn.Linear | None = None  # what each entry of the product of embeddings counts

    def __init__(self, tower: Tower, frames: int | None):
        self.tower, self.frames = tower, frame_count(frames)

    def reward_of(self, cosine: Tensor) -> Tensor:
        """The reward of cosines [N]."""
        return cosine

    def samples(self, samples: Samples) -> Tensor:
        """float32 [B]: the reward of each sample and its prompt."""
        return by_frame(type(self).__name__, samples, self.frames, self._pictures)

    def score(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """The reward [B] of images float [B, 3, H, W] in [0, 1], with gradient to them.

        Images are resized as floating point, not through 8 bits: a cosine equals that of the picture's file up to 0.003
        on the tests' models, noise included, and up to 1e-5 if nothing is resized. Raises ValueError for other shapes,
        types and numbers of texts.
        """
        return self.reward_of(self._cosine(self.tower.image(same_number(type(self).__name__, images, texts)), texts))

    def _pictures(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        return self.reward_of(self._cosine(self.tower.image_pil(pictures), texts))

    def _cosine(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Cosines [n * T] of embeddings [n * T, D] with n texts."""
        if not texts:
            return images.sum(-1)
        with torch.no_grad():
            told = self.tower.text([self.prefix + text for text in texts])
            told = told if self.head is None else told * self.head.weight[0].to(told)
        return (images.unflatten(0, (len(texts), -1)) * told.unsqueeze(1)).sum(-1).flatten()


def same_number(reward: str, images: Tensor, texts: Sequence[str] | None) -> Tensor:
    """The images, float [B, 3, H, W] in [0, 1]. Raises ValueError if they are not, or without one text for each."""
    if texts is not None and len(texts) != len(images):
        raise ValueError(f"{reward}: {len(images)} images and {len(texts)} texts; accepted is one text an image")
    return check_pixels(reward, images, 4)
