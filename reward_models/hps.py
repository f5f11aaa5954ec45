"""HPSv2 and HPSv2.1: human preference for a picture given its prompt.

Wu et al., Human Preference Score v2, arXiv 2306.09341. Weights: HPS_v2_compressed.pt and HPS_v2.1_compressed.pt of
xswu/HPSv2 on the hub (code Apache-2.0), for open_clip's ViT-H-14. Scale: the plain cosine, about 0.2 to 0.35, not the
logit. Pictures are letter-boxed, as in the authors' evaluation: the longest side becomes 224 and black fills the rest,
which keeps all of a wide picture. `crop: true` scales the shortest side and cuts instead, as SRPO and AlignProp do.
The authors' code pads nothing where the longest side is 224 already and so fails on 224 x 100; here that is padded.
"""

from torch import Tensor

from flowrl.contracts import Samples
from reward_models.parts.embedding.clip import tower
from reward_models.parts.hub import file_of
from reward_models.parts.vision.match import Match

FILES = {"v2": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


class hpsv2(Match):  # noqa: N801 - recipes name it
    """Human preference for a picture given its prompt, by HPSv2.1 (or v2): a cosine, about 0.2 to 0.35.

    checkpoint: the downloaded file, or the folder or model of the hub that has the file of `version`. model: the
    architecture, of open_clip by name or a folder's.
    """

    def __init__(
        self,
        *,
        version: str = "v2.1",
        checkpoint: str = "xswu/HPSv2",
        model: str = "ViT-H-14",
        crop: bool = False,
        frames: int | None = None,
    ):
        if version not in FILES:
            raise ValueError(f"hpsv2: version={version!r}: accepted are {', '.join(FILES)}")
        file = file_of(checkpoint, FILES[version], f"hpsv2 {version}")
        super().__init__(tower(model, str(file)).resizing("shortest" if crop else "letter_box"), frames)

    def __call__(self, samples: Samples) -> Tensor:
        """float32 [B], cosines; a video has the mean over its frames."""
        return self.samples(samples)
