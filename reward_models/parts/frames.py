"""Which frames of a video are scored, and pictures for a reward that scores one at a time.

Every reward with an argument `frames` takes the same ones (see `evenly`). Two follow what was published for them:
hpsv3 takes every n-th frame, video_reward a number per second.
"""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from flowrl.contracts import Samples
from reward_models.parts import inputs

Score = Callable[[Sequence[Image.Image], Sequence[str]], Tensor]


def evenly(number: int, wanted: int | None) -> list[int]:
    """`wanted` of the positions 0..number-1, evenly spaced from the first to the last; for one, the middle.

    All if None or if there are no more. The middle of an even number is the earlier of the two.
    """
    if wanted is None or wanted >= number:
        return list(range(number))
    if wanted == 1:
        return [(number - 1) // 2]
    return [round(i * (number - 1) / (wanted - 1)) for i in range(wanted)]


def frame_count(frames: int | None) -> int | None:
    """The argument `frames` of a reward. Raises ValueError for anything but None and whole numbers of 1 and more."""
    if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
        raise ValueError(f"frames={frames!r}: accepted is None (all of a video) or how many, 1 or more")
    return frames


@torch.no_grad()
def by_frame(reward: str, samples: Samples, frames: int | None, score: Score) -> Tensor:
    """The mean over the frames of each sample, float32 [B] on the CPU; NaN where a pixel is not finite.

    `score` takes n texts and their n * T pictures, sample by sample, and returns [n * T]. Raises ValueError for samples
    without pictures.
    """
    pixels = inputs.frames(reward, samples)
    scores = torch.full((len(samples),), torch.nan)
    good = (~inputs.is_unscorable(pixels)).nonzero().flatten().tolist() if len(samples) else []
    if good:
        picked = pixels[good][:, evenly(pixels.shape[1], frames)]
        texts = [samples.prompts[i].text for i in good]
        values = score(inputs.as_pil(picked.flatten(0, 1)), texts)
        scores[good] = values.float().cpu().view(len(good), -1).mean(1)
    return scores
