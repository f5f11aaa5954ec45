"""Subject and prompt at once: the weighted harmonic mean of two similarities that RPO trains on (arXiv 2407.12164).

A picture must resemble its references (the prompt's `media`) and fit its prompt: the harmonic mean follows the smaller
of the two, so that copying a reference earns little. Both cosines are mapped to [0, 1] by (c + 1) / 2; that is the
scale. RPO takes both from ALIGN (kakaobrain/align-base); here they are CLIP's, optionally DINO's for the references.
Weights: openai/clip-vit-base-patch16 (code MIT), facebook/dino-vits16 (Apache-2.0).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flowrl.contracts import Prompt, Samples
from reward_models.parts.embedding.clip import tower
from reward_models.parts.embedding.dino import Dino
from reward_models.parts.embedding.likeness import EmbedPictures, Likeness


def harmonic(image: Tensor, text: Tensor, lam: float, eps: float = 1e-8) -> Tensor:
    """1 / (lam / i + (1 - lam) / t) of two cosines in [-1, 1] of one shape, i and t being (cosine + 1) / 2 + eps.

    lam 0 is the text alone and lam 1 the image alone, without eps. Raises ValueError for lam outside [0, 1].
    """
    if not 0 <= lam <= 1:
        raise ValueError(f"lam={lam}: accepted is 0 (the text alone) to 1 (the references alone)")
    image, text = (image + 1) / 2, (text + 1) / 2
    if lam in (0, 1):
        return image if lam == 1 else text
    return 1 / (lam / (image + eps) + (1 - lam) / (text + eps))


class subject_harmonic(Likeness):  # noqa: N801
    """Harmonic mean of the likeness to the references and the fit to the prompt, float32 [B] in [0, 1].

    lam: weight of the likeness. dino: a DINO for the likeness, instead of the CLIP of `model` and `weights`.
    """

    def __init__(
        self,
        *,
        lam: float = 0.3,
        model: str = "openai/clip-vit-base-patch16",
        weights: str | None = None,
        dino: str | None = None,
        frames: int | None = None,
    ):
        harmonic(torch.zeros(1), torch.zeros(1), lam)
        self.lam = lam
        self.tower = tower(model, weights)
        super().__init__(self.tower if dino is None else Dino(dino, "subject_harmonic"), frames)

    def __call__(self, samples: Samples) -> Tensor:
        """The harmonic mean of each picture, float32 [B]; a video has the mean over its frames."""
        return self.samples(samples)

    def reward_of(self, look: EmbedPictures, prompts: Sequence[Prompt]) -> Tensor:
        """The reward [N] of N pictures; see `Likeness.reward_of`."""
        seen = look(self.tower)
        likeness = self.cosines(seen if self.eyes is self.tower else look(self.eyes), prompts)
        with torch.no_grad():
            told = self.tower.text([prompt.text for prompt in prompts])
        fit = (seen.unflatten(0, (len(prompts), -1)) * told.unsqueeze(1)).sum(-1).flatten()
        return harmonic(likeness, fit, self.lam)
