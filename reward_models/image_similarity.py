"""How much a picture looks like its references: DINO and CLIP-I, the two measures of subject fidelity.

Ruiz et al., DreamBooth, arXiv 2208.12242, section 4.2: the mean over the reference pictures (the prompt's `media`) of
the cosine of two embeddings, here the class token of DINO or CLIP's image embedding. Scale: [-1, 1]; photos of one
subject have about 0.77 (DINO ViT-S/16) and 0.89 (CLIP-I) in that paper. CLIP-T, its third measure, is the reward
`clip_score` with its scale `cosine`. Weights: facebook/dino-vits16 (Apache-2.0) and, as in RPO,
openai/clip-vit-base-patch16 (code MIT); any DINOv2 or CLIP as well. Cosines of different models do not compare.

DINO sees what sets a subject apart, CLIP-I rather its class. Both see the background too. RPO's code averages over the
batch as well and needs pictures of one size; this scores each on its own.
"""

from torch import Tensor

from flowrl.contracts import Samples
from reward_models.parts.embedding.clip import tower
from reward_models.parts.embedding.dino import Dino
from reward_models.parts.embedding.likeness import Likeness


class dino_similarity(Likeness):  # noqa: N801
    """Cosine of a picture and the reference pictures of its prompt by DINO, float32 [B]."""

    def __init__(self, *, model: str = "facebook/dino-vits16", frames: int | None = None):
        super().__init__(Dino(model, "dino_similarity"), frames)

    def __call__(self, samples: Samples) -> Tensor:
        """Mean cosine over the references; a video has the mean over its frames."""
        return self.samples(samples)


class clip_i(Likeness):  # noqa: N801
    """Cosine of a picture and the reference pictures of its prompt by CLIP, float32 [B].

    model and weights as in parts/clip.py: a folder or model of the hub, or an architecture of open_clip with weights.
    """

    def __init__(
        self, *, model: str = "openai/clip-vit-base-patch16", weights: str | None = None, frames: int | None = None
    ):
        super().__init__(tower(model, weights, texts=False), frames)

    def __call__(self, samples: Samples) -> Tensor:
        """Mean cosine over the references; a video has the mean over its frames."""
        return self.samples(samples)
