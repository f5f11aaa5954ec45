"""LAION aesthetic score: how much people like a picture, whatever its prompt.

Schuhmann, improved-aesthetic-predictor (Apache-2.0). Weights: sac+logos+ava1-l14-linearMSE.pth of
github.com/christophschuhmann/improved-aesthetic-predictor on the image embedding of OpenAI's CLIP ViT-L/14, scaled to
length 1. Scale: 1 to 10. The head has linear layers only, no activations (768-1024-128-64-16-1). OpenAI's weights need
QuickGELU: transformers knows, and open_clip is told for its tag `openai`; a file of them takes ViT-L-14-quickgelu.
"""

from typing import Literal

from torch import Tensor

from flowrl.contracts import Samples
from reward_models.parts.assets import shipped_path
from reward_models.parts.checkpoints import state_dict
from reward_models.parts.embedding.clip import tower
from reward_models.parts.preference.beauty import Beauty

HEAD = "sac+logos+ava1-l14-linearMSE.pth"
FEATURES = ("embedding", "patches")
PLACE = "github.com/christophschuhmann/improved-aesthetic-predictor"


class aesthetic(Beauty):  # noqa: N801 - recipes name it
    """Aesthetic score of a picture by LAION's predictor on CLIP ViT-L/14: 1 to 10.

    head: the path of the downloaded state dict, or shapes-aesthetic, which ships (on model shapes-clip). model and
    weights as in parts/clip.py. features: what the head weighs, the picture's embedding or the mean of its patches, as
    `flowrl train-reward --features` fits them.
    """

    def __init__(
        self,
        *,
        head: str = HEAD,
        model: str = "openai/clip-vit-large-patch14",
        weights: str | None = None,
        features: Literal["embedding", "patches"] = "embedding",
        frames: int | None = None,
    ):
        if features not in FEATURES:
            raise ValueError(f"features={features!r}: accepted: {' or '.join(FEATURES)}")
        what = f"head of aesthetic ({HEAD} of {PLACE})"
        tensors = state_dict(shipped_path(head), what)
        embedder = tower(model, weights, texts=False)
        super().__init__(embedder.by_patches() if features == "patches" else embedder, tensors, what, frames)

    def __call__(self, samples: Samples) -> Tensor:
        """float32 [B], about 1 to 10; a video has the mean over its frames."""
        return self.samples(samples)
