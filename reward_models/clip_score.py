"""CLIPScore: how well a picture fits its prompt, by any CLIP or SigLIP.

Hessel et al., CLIPScore, arXiv 2104.08718. Weights: openai/clip-vit-large-patch14 by default (code MIT, for the
weights see their card), or any of open_clip. Scale `cosine`, `logit` (the model's own, 100 times that for CLIP) or
`clipscore`, 2.5 * max(cosine, 0), the paper's, which also puts "A photo depicts " before a caption (`prefix`).
Pictures go through 8 bits and Pillow as in the checkpoint's training: resizing tensors instead, as some trainers do,
gives other numbers. The embedding is read from transformers 4 and 5 alike.
"""

from torch import Tensor, nn

from flowrl.contracts import Samples
from reward_models.parts.checkpoints import fill, state_dict
from reward_models.parts.embedding.clip import tower
from reward_models.parts.vision.match import Match

SCALES = ("cosine", "logit", "clipscore")


class clip_score(Match):  # noqa: N801 - recipes name it
    """Similarity of a picture and its prompt by CLIP: cosine, logit or CLIPScore.

    model and weights as in parts/clip.py: a folder or model of the hub, or an architecture of open_clip with weights.
    head: a file by `flowrl train-reward`, which says what each entry of the two embeddings' product counts (None: 1).
    """

    def __init__(
        self,
        *,
        model: str = "openai/clip-vit-large-patch14",
        weights: str | None = None,
        processor: str | None = None,
        scale: str = "cosine",
        prefix: str = "",
        frames: int | None = None,
        head: str | None = None,
    ):
        if scale not in SCALES:
            raise ValueError(f"clip_score: scale={scale!r}: accepted are {', '.join(SCALES)}")
        self.scale, self.prefix = scale, prefix
        super().__init__(tower(model, weights, processor=processor), frames)
        if head is not None:
            what = "head of clip_score (by `flowrl train-reward --kind clip`)"
            self.head = nn.Linear(self.tower.width, 1, bias=False)
            fill(self.head, {name.removeprefix("0."): t for name, t in state_dict(head, what).items()}, what)
            self.freeze()

    def __call__(self, samples: Samples) -> Tensor:
        """float32 [B], in the requested scale; a video has the mean over its frames."""
        return self.samples(samples)

    def reward_of(self, cosine: Tensor) -> Tensor:
        """The scores of cosines [N], in the requested scale."""
        if self.scale == "logit":
            return self.tower.logit_scale * cosine + self.tower.logit_bias
        return 2.5 * cosine.clamp(min=0) if self.scale == "clipscore" else cosine
