"""PickScore: which picture people pick for a prompt.

Kirstain et al., Pick-a-Pic, arXiv 2305.01569. Weights: yuvalkirstain/PickScore_v1, a fine-tuned CLIP ViT-H/14 (code
MIT; for the weights see their card), with tokenizer and image sizes of laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
Scale: logits, exp(logit_scale) * cosine, about 20 to 24. Trainers differ: `divide: 26` is flow_grpo's, `divide: 20`
SRPO's, `scale: cosine` Pref-GRPO's.
"""

from pathlib import Path

from torch import Tensor

from flowrl.contracts import Samples
from reward_models.parts.embedding.clip import tower
from reward_models.parts.vision.match import Match

PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
SCALES = ("logit", "cosine")


class pick_score(Match):  # noqa: N801 - recipes name it
    """Human preference for a picture given its prompt, by PickScore: its logit, about 20 to 24.

    processor: where tokenizer and image sizes are; None: in `model` if it is a folder that has them, else LAION's
    ViT-H/14, as published.
    """

    def __init__(
        self,
        *,
        model: str = "yuvalkirstain/PickScore_v1",
        processor: str | None = None,
        scale: str = "logit",
        divide: float = 1.0,
        frames: int | None = None,
    ):
        if scale not in SCALES:
            raise ValueError(f"pick_score: scale={scale!r}: accepted are {', '.join(SCALES)}")
        if isinstance(divide, bool) or not divide > 0:
            raise ValueError(f"pick_score: divide={divide!r}: accepted is a number above 0 (26 as in flow_grpo)")
        self.scale, self.divide = scale, divide
        own = (Path(model).expanduser() / "preprocessor_config.json").is_file()
        super().__init__(tower(model, processor=processor or (model if own else PROCESSOR)), frames)

    def __call__(self, samples: Samples) -> Tensor:
        """float32 [B], in the scale asked for; a video has the mean over its frames."""
        return self.samples(samples)

    def reward_of(self, cosine: Tensor) -> Tensor:
        """The scores of cosines [N]."""
        return (self.tower.logit_scale * cosine if self.scale == "logit" else cosine) / self.divide
