"""What samples look like, whatever a reward says of them: a policy that games its reward shows here first.

Every statistic is a mean over samples, or over groups of at least two, so that the size-weighted mean of batches is the
value of the whole. A pixel or text that a reward never sees still counts.

samples/saturation   HSV saturation, (max - min) / max over a pixel's channels, mean over pixels, in [0, 1]
samples/brightness   mean over pixels and channels, in [0, 1]
samples/contrast     standard deviation of a picture's luma (ITU-R BT.601), in [0, 0.5]
samples/sharpness    root mean square of the luma's 4-neighbour Laplacian, at full resolution, in [0, 4]
samples/clipped      share of channel values that 8 bits store as 0 or 255, at full resolution
samples/diversity    root-mean-square pixel distance of two samples of a group, mean over pairs, in [0, 1]; of sound
                     alone that of spectrograms
samples/sound_level  root-mean-square level in decibels relative to full scale, at least -120
samples/sound_centroid  mean frequency of the power in kHz, over the sounds that are not silent
samples/sound_clipped  share of sound samples at full scale or beyond
samples/length       decisions drawn (tokens), where samples say, else characters
samples/truncated    share of texts that their length limit ended
samples/distinct     share of different texts in a group
samples/repetition   1 - different / all runs of eight characters in a text, in [0, 1); 0 for a shorter text
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from flowrl.contracts import Samples
from flowrl.core.evaluation import still
from flowrl.media.sounds import pictured
from reward_models.parts.vision import looks, tones

LAYOUT_SIZE = 32  # distances are measured on pictures of this size: two samples differ by what they show, not by grain
CHUNK = 2**24  # values looked at together
RUN = 8  # characters


@torch.no_grad()
def sample_statistics(samples: Samples) -> dict[str, float]:
    """The statistics of the module's table that apply to these samples, by name; a video counts by its middle frame.

    Pictures that are not finite give NaN.
    """
    found: dict[str, float] = {}
    pictures = still(samples)
    if pictures is not None and len(pictures):
        found |= _pictures(pictures, samples.group)
    if samples.audio is not None and len(samples.audio):
        found |= _sounds(samples, samples.audio, alone=pictures is None)
    if samples.texts is not None and len(samples.texts):
        found |= _texts(samples)
    return found


def _pictures(pictures: Tensor, group: Tensor) -> dict[str, float]:
    """Statistics of [B, 3, H, W] in [0, 1], a chunk at a time: a thousand large pictures need no second copy."""
    rows: dict[str, list[Tensor]] = {name: [] for name in PICTURE}
    layouts: list[Tensor] = []
    for part in pictures.split(max(1, CHUNK // pictures[0].numel())):
        x = part.to(torch.promote_types(part.dtype, torch.float32))
        small = looks.reduced(x)
        for name, (measure, full) in PICTURE.items():
            rows[name].append(measure(x if full else small).cpu().double())  # not every device knows float64 or pdist
        layouts.append(looks.reduced(small, LAYOUT_SIZE).flatten(1).cpu())
    layout = torch.cat(layouts)
    distances = [torch.pdist(layout[at]).mean() for at in _groups(group)]
    values = {name: torch.cat(parts).mean() for name, parts in rows.items()}
    if distances:
        values["diversity"] = torch.stack(distances).double().mean() / layout.shape[1] ** 0.5
    return {f"samples/{name}": float(value) for name, value in values.items()}


def _sounds(samples: Samples, audio: Tensor, *, alone: bool) -> dict[str, float]:
    """Statistics of sound [B, C, T]; alone: whether there is nothing else that diversity could be measured on."""
    centroid = tones.centroid(audio, samples.sample_rate or 1)
    found = {
        "samples/sound_level": float(tones.level(audio).mean()),
        "samples/sound_centroid": float(centroid.nanmean()),
        "samples/sound_clipped": float(tones.clipped(audio).mean()),
    }
    if alone:
        whole = _pictures(pictured(audio), samples.group)
        found |= {name: value for name, value in whole.items() if name == "samples/diversity"}
    return found


def _groups(group: Tensor) -> Iterator[Tensor]:
    """Positions of the samples of each group of two or more, in order of rising label."""
    labels = group.cpu()
    for label in labels.unique():
        at = (labels == label).nonzero()[:, 0]
        if len(at) > 1:
            yield at


# name -> (pictures [b, 3, h, w] -> [b], whether it has to see every pixel)
PICTURE: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "saturation": (looks.saturation, False),
    "brightness": (looks.brightness, False),
    "contrast": (looks.contrast, False),
    "sharpness": (looks.sharpness, True),
    "clipped": (looks.clipped, True),
}


def _texts(samples: Samples) -> dict[str, float]:
    texts = samples.texts or ()
    sizes = [float(n) for n in (map(len, texts) if samples.lengths is None else samples.lengths)]
    found = {
        "samples/length": sum(sizes) / len(sizes),
        "samples/repetition": sum(map(_repetition, texts)) / len(texts),
    }
    if samples.truncated is not None:
        found["samples/truncated"] = float(samples.truncated.double().mean())
    shares = [len({texts[i] for i in at.tolist()}) / len(at) for at in _groups(samples.group)]
    return found | ({"samples/distinct": sum(shares) / len(shares)} if shares else {})


def _repetition(text: str) -> float:
    runs = [text[i : i + RUN] for i in range(len(text) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
