"""Does a video show the same things from frame to frame? By its pixels, or by the embeddings of its frames.

Without a model, scale 0 to 1: 1 - mean |frame - next frame warped by the optical flow|, over the pixels that stay in
the picture. Motion costs little; flicker, popping and noise cost much. There is no mask of occluded pixels: it would
let noise mask itself.

With a model, scale 0 to 1: the mean over frames t = 1.. of (max(0, cos(t, t-1)) + max(0, cos(t, 0))) / 2, VBench's
formula (arXiv:2311.17982): of its subject consistency with DINO (facebook/dino-vitb16, Apache-2.0), of its background
consistency with CLIP (openai/clip-vit-base-patch32, code MIT). Frames are resized as the checkpoint says; VBench leaves
DINO's in their proportions, so that of frames that are not square its numbers are others.

Both rise to 1 for a still video: combine them with the reward optical_flow.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from flowrl.contracts import Samples
from reward_models.parts import checkpoints, inputs
from reward_models.parts.model import Model
from reward_models.parts.vision.flow import SMALLEST, Flow, moving_clips, warp


class frame_consistency(Model):  # noqa: N801 - recipes name it
    """Similarity of each frame to the frames before it, 0 to 1.

    model: None compares pixels along the optical flow (preset as in parts/flow.py); a folder or model of the hub
    compares embeddings, of CLIP or of a vision transformer such as DINO; with weights, an architecture of open_clip.
    """

    def __init__(self, *, model: str | None = None, weights: str | None = None, preset: str = "medium"):
        if weights is not None and model is None:
            raise ValueError(f"frame_consistency: weights={weights!r} without a model; name its architecture as model")
        self.eyes = None if model is None else _embedder(model, weights)
        self.flow = Flow("frame_consistency", preset) if model is None else None
        self.freeze()

    @torch.no_grad()
    def __call__(self, samples: Samples) -> Tensor:
        """float32 [B] in [0, 1]; NaN where a pixel is not finite. Needs two frames, and 32 pixels a side for flow."""
        video = moving_clips("frame_consistency", samples, SMALLEST if self.flow else 1)
        scores = torch.full((len(samples),), torch.nan)
        for i in (~inputs.is_unscorable(video)).nonzero().flatten().tolist() if len(samples) else []:
            scores[i] = self._by_flow(video[i]) if self.flow else self._by_embedding(video[i])
        return scores

    def _by_flow(self, clip: Tensor) -> Tensor:
        """Consistency of the pixels of [T, 3, H, W], one pair of frames after the other; scalar."""
        frames = clip.float().cpu()
        return torch.stack([self._pair(frames[t : t + 2]) for t in range(len(frames) - 1)]).mean()

    def _pair(self, two: Tensor) -> Tensor:
        """Consistency of [2, 3, H, W], scalar; 0 if nothing stays in the picture."""
        assert self.flow is not None
        seen, inside = warp(two[1:], self.flow(two))
        same = 1 - (seen - two[:1]).abs().mean(1)
        return same[inside].sum() / inside.sum().clamp(min=1)

    def _by_embedding(self, clip: Tensor) -> Tensor:
        """Consistency of the embeddings of [T, 3, H, W]."""
        assert self.eyes is not None
        return consistency(self.eyes.image_pil(inputs.as_pil(clip)))


def consistency(features: Tensor) -> Tensor:
    """VBench's consistency of the embeddings [T, D] of a video's frames, scalar in [0, 1]."""
    unit = functional.normalize(features.float(), dim=-1)
    previous = (unit[1:] * unit[:-1]).sum(-1).clamp(0, 1)
    first = (unit[1:] @ unit[0]).clamp(0, 1)
    return ((previous + first) / 2).mean()


def _embedder(model: str, weights: str | None):
    """The model that embeds frames: DINO and other vision transformers by transformers, CLIP by parts/embedding."""
    from transformers import AutoConfig

    from reward_models.parts.embedding.clip import tower
    from reward_models.parts.embedding.dino import KINDS, Dino
    from reward_models.parts.embedding.open_clip_tower import CONFIG, ELSEWHERE

    by_open_clip = model.startswith(ELSEWHERE) or (Path(model).expanduser() / CONFIG).is_file()
    if weights is None and not by_open_clip:
        config = checkpoints.load_pretrained(AutoConfig.from_pretrained, model, "frame_consistency")
        if config.model_type in KINDS:
            return Dino(model, "frame_consistency")
    return tower(model, weights, texts=False)
