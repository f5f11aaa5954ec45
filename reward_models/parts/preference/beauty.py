"""Rewards of a picture alone: a head of linear layers on the embedding of a vision model."""

from collections.abc import Mapping, Sequence

from PIL import Image
from torch import Tensor

from flowrl.contracts import Samples
from reward_models.parts.embedding.heads import linear_chain
from reward_models.parts.embedding.tower import Tower
from reward_models.parts.frames import by_frame, frame_count
from reward_models.parts.model import Model
from reward_models.parts.vision.match import same_number


class Beauty(Model):
    """A reward that ignores the prompt; a video has the mean over its frames."""

    differentiable = True  # by `score`

    def __init__(self, tower: Tower, head: Mapping[str, Tensor], what: str, frames: int | None):
        self.frames = frame_count(frames)
        self.tower, self.head = tower, linear_chain(head, tower.width, what)
        self.freeze()

    def samples(self, samples: Samples) -> Tensor:
        """float32 [B]: the score of each sample."""
        return by_frame(type(self).__name__, samples, self.frames, self._pictures)

    def score(self, images: Tensor, texts: Sequence[str] | None = None) -> Tensor:
        """The score [B] of images float [B, 3, H, W] in [0, 1], with gradient to them; texts do not count.

        Images are resized as floating point, not through 8 bits: a score equals that of the picture's file up to 0.01
        on the tests' models, noise included, and up to 1e-5 if nothing is resized. Raises ValueError for other shapes,
        types and numbers of texts.
        """
        return self.head(self.tower.image(same_number(type(self).__name__, images, texts))).squeeze(-1)

    def _pictures(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        return self.head(self.tower.image_pil(pictures)).squeeze(-1)
