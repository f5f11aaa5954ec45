"""How much a video moves: the mean length of its optical flow.

Scale: pixels per frame (or shares of the shorter side with `relative`), so a longer step between frames counts as more
motion. Reward models of images favour still videos; a small weight of this reward keeps them moving, a negative one
makes them calm. It cannot tell motion from flicker and noise: combine it with frame_consistency. The published measure
of this kind is VBench's dynamic degree (arXiv:2311.17982), which thresholds the largest 5 % of RAFT's flow.
"""

import torch
from torch import Tensor

from flowrl.contracts import Samples
from reward_models.parts import inputs
from reward_models.parts.vision.flow import Flow, moving_clips


class optical_flow:  # noqa: N801 - recipes name it
    """Mean length of the optical flow between neighbouring frames, in pixels a frame.

    preset: medium, or fast and ultrafast, see parts/flow.py. relative: in shares of the shorter side, so that sizes
    compare.
    """

    def __init__(self, *, preset: str = "medium", relative: bool = False):
        self.flow, self.relative = Flow("optical_flow", preset), relative

    @torch.no_grad()
    def __call__(self, samples: Samples) -> Tensor:
        """float32 [B], 0 and more; NaN where a pixel is not finite. Needs two frames of 32 pixels a side."""
        video = moving_clips("optical_flow", samples)
        scores = torch.full((len(samples),), torch.nan)
        unit = min(video.shape[-2:]) if self.relative else 1
        for i in (~inputs.is_unscorable(video)).nonzero().flatten().tolist() if len(samples) else []:
            scores[i] = self.flow(video[i]).norm(dim=-1).mean() / unit
        return scores
