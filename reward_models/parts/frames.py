"""Pictures of samples for a reward that looks at one at a time: an image is one, a video several."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from flowrl.contracts import Samples
from reward_models.parts import inputs

Score = Callable[[Sequence[Image.Image], Sequence[str]], Tensor]


def evenly(number: int, wanted: int | None) -> list[int]:
    """`wanted` of the positions 0..number-1, evenly spaced from the first to the last; all where None or fewer."""
    if wanted is None or wanted >= number:
        return list(range(number))
    return [0] if wanted == 1 else [round(i * (number - 1) / (wanted - 1)) for i in range(wanted)]


def frame_count(frames: int | None) -> int | None:
    """The argument `frames` of a reward. Raises ValueError for anything but None and whole numbers of 1 and more."""
    if frames is not None and (isinstance(frames, bool) or not isinstance(frames, int) or frames < 1):
        raise ValueError(f"frames={frames!r}: accepted is None (all of a video) or how many, 1 or more")
    return frames


@torch.no_grad()
def by_frame(reward: str, samples: Samples, frames: int | None, score: Score) -> Tensor:
    """The mean over the frames of each sample, float32 [B] on the CPU; NaN where a pixel is not finite.

    `score` is given n texts and their n * T pictures, sample by sample, and returns n * T numbers. Raises ValueError
    for samples without pictures.
    """
    pixels = inputs.frames(reward, samples)
    scores = torch.full((len(samples),), torch.nan)
    good = (~inputs.unscored(pixels)).nonzero().flatten().tolist() if len(samples) else []
    if good:
        picked = pixels[good][:, evenly(pixels.shape[1], frames)]
        texts = [samples.prompts[i].text for i in good]
        found = score(inputs.as_pil(picked.flatten(0, 1)), texts)
        scores[good] = found.float().cpu().view(len(good), -1).mean(1)
    return scores
