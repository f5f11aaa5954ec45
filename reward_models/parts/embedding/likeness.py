"""Rewards that compare a picture with the reference pictures in its prompt's media, as subject-driven work does."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image, ImageOps
from torch import Tensor

from flowrl.contracts import Prompt, Samples
from reward_models.parts import inputs
from reward_models.parts.frames import evenly, frame_count
from reward_models.parts.model import Model


class PictureEmbedder(Protocol):
    """A module that embeds pictures: the towers of clip.py, or dino.py."""

    def image(self, images: Tensor) -> Tensor:
        """Embeddings [B, D] of length 1 of images float [B, 3, H, W] in [0, 1], with gradient to them."""
        ...

    def image_pil(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Embeddings [B, D] of length 1 of pictures of any sizes."""
        ...


EmbedPictures = Callable[
    [PictureEmbedder], Tensor
]  # the embeddings [N, D] of the pictures at hand, by the module that is given


class Likeness(Model):
    """A reward of a picture, its prompt and the prompt's media; a video has the mean over its frames.

    References are embedded once: embeddings are cached by path and modification time.
    """

    def __init__(self, eyes: PictureEmbedder, frames: int | None):
        self.eyes, self.frames = eyes, frame_count(frames)
        self._known: dict[str, tuple[int, Tensor]] = {}
        self.freeze()

    def reward_of(self, look: EmbedPictures, prompts: Sequence[Prompt]) -> Tensor:
        """The reward [N] of n prompts and their N = n * T pictures, prompt by prompt: the cosine, unless overridden."""
        return self.cosines(look(self.eyes), prompts)

    def cosines(self, seen: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Mean cosine [N] of each embedding [N, D] with the references of its prompt; N as in reward_of."""
        # the mean of cosines with vectors of length 1 is the product with their mean
        targets = torch.stack([self.references(prompt).mean(0) for prompt in prompts]).to(seen.device)
        return (seen.unflatten(0, (len(prompts), -1)) * targets.unsqueeze(1)).sum(-1).flatten()

    @torch.no_grad()
    def samples(self, samples: Samples) -> Tensor:
        """float32 [B] on the CPU: the reward of each sample; NaN where a pixel is not finite.

        Raises ValueError, in one line, for a prompt without media and for media that are not pictures.
        """
        pixels = inputs.frames(self.name, samples)
        scores = torch.full((len(samples),), torch.nan)
        good = (~inputs.is_unscorable(pixels)).nonzero().flatten().tolist() if len(samples) else []
        prompts = [samples.prompts[i] for i in good]
        if good:
            pictures = inputs.as_pil(pixels[good][:, evenly(pixels.shape[1], self.frames)].flatten(0, 1))
            rewards = self.reward_of(lambda eyes: eyes.image_pil(pictures), prompts)
            scores[good] = rewards.float().cpu().view(len(good), -1).mean(1)
        return scores

    def score(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """The reward [B] of images float [B, 3, H, W] in [0, 1], with gradient to them; prompts, since they have media.

        Images are resized as floating point: scores equal those of the pictures' files to 1e-5 if 8-bit pictures have
        the model's size, else to 0.002 if they are as smooth as photos (preprocess.py says by how many levels the
        inputs differ). Raises ValueError for other shapes, types and numbers of prompts.
        """
        if len(prompts) != len(images):
            raise ValueError(f"{self.name}: {len(images)} images and {len(prompts)} prompts; accepted is one an image")
        checked = inputs.check_pixels(self.name, images, 4)
        return self.reward_of(lambda eyes: eyes.image(checked), prompts) if prompts else checked.flatten(1).sum(1)

    def references(self, prompt: Prompt) -> Tensor:
        """Embeddings [R, D] of the prompt's media, on the CPU."""
        if not prompt.media:
            raise ValueError(
                f"{self.name} compares with reference pictures and prompt {prompt.text!r} has none; "
                "give their paths as `media` in the prompt file"
            )
        return torch.cat([self._reference(path) for path in prompt.media])

    @torch.no_grad()
    def _reference(self, path: str) -> Tensor:
        picture, changed = _read(self.name, path)
        if path not in self._known or self._known[path][0] != changed:
            self._known[path] = changed, self.eyes.image_pil([picture()]).float().cpu()
        return self._known[path][1]

    @property
    def name(self) -> str:
        """The name of this reward in messages."""
        return type(self).__name__


def _read(reward: str, path: str) -> tuple[Callable[[], Image.Image], int]:
    """(a function that opens the picture of a file, upright according to its EXIF; its modification time)."""

    def picture() -> Image.Image:
        try:
            with Image.open(path) as opened:
                return ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{reward}: the reference {path!r} is not a readable picture ({type(error).__name__}); "
                "give PNG, JPEG or WebP"
            ) from error

    try:
        return picture, Path(path).stat().st_mtime_ns
    except OSError as error:
        raise ValueError(f"{reward}: no reference at {path!r} ({type(error).__name__}); correct the path") from error
