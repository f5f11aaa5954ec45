"""Aesthetic predictor v2.5: how much people like a picture, whatever its prompt, by SigLIP.

Weights: aesthetic_predictor_v2_5.pth of github.com/discus0434/aesthetic-predictor-v2-5 on the pooled output, scaled to
length 1, of google/siglip-so400m-patch14-384 (Apache-2.0). The authors' code is AGPL-3.0: nothing of it is used here,
the head is read from the shapes in the file, linear layers 1152-1024-128-64-16-1 with dropout between them, which does
nothing when a model is used. Scale: 1 to 10.
"""

from torch import Tensor

from flowrl.contracts import Samples
from reward_models.parts.checkpoints import state_dict
from reward_models.parts.embedding.clip import tower
from reward_models.parts.preference.beauty import Beauty

HEAD = "aesthetic_predictor_v2_5.pth"
PLACE = "github.com/discus0434/aesthetic-predictor-v2-5"


class aesthetic_v25(Beauty):  # noqa: N801 - recipes name it
    """Aesthetic score of a picture by the predictor v2.5 on SigLIP so400m: 1 to 10.

    head: the path of the downloaded state dict. model: a SigLIP, folder or model of the hub.
    """

    def __init__(
        self,
        *,
        head: str = HEAD,
        model: str = "google/siglip-so400m-patch14-384",
        frames: int | None = None,
    ):
        what = f"head of aesthetic_v25 ({HEAD} of {PLACE})"
        tensors = state_dict(head, what)
        super().__init__(tower(model, texts=False), tensors, what, frames)

    def __call__(self, samples: Samples) -> Tensor:
        """float32 [B], about 1 to 10; a video has the mean over its frames."""
        return self.samples(samples)
