"""Statistics of samples that depend on no reward: reward hacking shows here first.

Every statistic is a mean over samples, or over groups of at least two, so that the size-weighted mean over batches is
the value of the whole. Pixels and texts that a reward never sees count too.

samples/saturation   HSV saturation, (max - min) / max over a pixel's channels, mean over pixels, in [0, 1]
samples/brightness   mean over pixels and channels, in [0, 1]
samples/contrast     standard deviation of a picture's luma (ITU-R BT.601), in [0, 0.5]
samples/sharpness    root mean square of the luma's 4-neighbour Laplacian, at full resolution, in [0, 4]
samples/clipped      share of channel values that 8 bits store as 0 or 255, at full resolution
samples/diversity    root-mean-square pixel distance between two samples of a group, mean over pairs, in [0, 1]; for
                     samples with sound alone, of spectrograms
samples/sound_level  root-mean-square level in decibels relative to full scale, at least -120
samples/sound_centroid  mean frequency of the power in kHz, over sounds that are not silent
samples/sound_clipped  share of sound samples at full scale or beyond
samples/length       decisions drawn (tokens) if samples give them, else characters
samples/truncated    share of texts that reached the length limit
samples/distinct     share of different texts in a group
talk/turns           turns of the model in a conversation
talk/calls           calls of tools in a conversation, wrong ones too
talk/wrong_calls     calls that could not be run
talk/end_*           share of conversations that ended so: answer, turns, length or failed
samples/repetition   1 - different / all runs of eight characters in a text, in [0, 1); 0 for a shorter text
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from flowrl.contracts import ENDS, Conversation, Samples
from flowrl.core.evaluation import still
from flowrl.media.sounds import spectrogram_pictures
from reward_models.parts.vision import looks, tones

LAYOUT_SIZE = 32  # pixels a side for distances, so that two samples differ by what they show, not by grain
CHUNK = 2**24  # values processed at once
RUN = 8  # characters


@torch.no_grad()
def sample_statistics(samples: Samples) -> dict[str, float]:
    """The statistics of the module's table that apply to these samples, by name; of a video, those of its middle frame.

    Pictures that are not finite give NaN.
    """
    statistics: dict[str, float] = {}
    pictures = still(samples)
    if pictures is not None and len(pictures):
        statistics |= _picture_statistics(pictures, samples.group)
    if samples.audio is not None and len(samples.audio):
        statistics |= _sound_statistics(samples, samples.audio, alone=pictures is None)
    if samples.texts is not None and len(samples.texts):
        statistics |= _text_statistics(samples)
    if samples.talks:
        statistics |= _talk_statistics(samples.talks)
    return statistics


def _picture_statistics(pictures: Tensor, group: Tensor) -> dict[str, float]:
    """Statistics of pictures [B, 3, H, W] in [0, 1] and their groups [B], in chunks, without a second copy of all."""
    rows: dict[str, list[Tensor]] = {name: [] for name in PICTURE_STATISTICS}
    layouts: list[Tensor] = []
    for part in pictures.split(max(1, CHUNK // pictures[0].numel())):
        x = part.to(torch.promote_types(part.dtype, torch.float32))
        small = looks.downscale(x)
        for name, (measure, full) in PICTURE_STATISTICS.items():
            rows[name].append(measure(x if full else small).cpu().double())  # not every device knows float64 or pdist
        layouts.append(looks.downscale(small, LAYOUT_SIZE).flatten(1).cpu())
    layout = torch.cat(layouts)
    distances = [torch.pdist(layout[at]).mean() for at in _group_positions(group)]
    values = {name: torch.cat(parts).mean() for name, parts in rows.items()}
    if distances:
        values["diversity"] = torch.stack(distances).double().mean() / layout.shape[1] ** 0.5
    return {f"samples/{name}": float(value) for name, value in values.items()}


def _sound_statistics(samples: Samples, audio: Tensor, *, alone: bool) -> dict[str, float]:
    """Statistics of sound [B, C, T]; alone: whether diversity has to be measured on sound."""
    centroid = tones.centroid(audio, samples.sample_rate or 1)
    statistics = {
        "samples/sound_level": float(tones.level(audio).mean()),
        "samples/sound_centroid": float(centroid.nanmean()),
        "samples/sound_clipped": float(tones.clipped_share(audio).mean()),
    }
    if alone:
        whole = _picture_statistics(spectrogram_pictures(audio), samples.group)
        statistics |= {name: value for name, value in whole.items() if name == "samples/diversity"}
    return statistics


def _group_positions(group: Tensor) -> Iterator[Tensor]:
    """Positions int64 [n] of the samples of each group of at least two, by rising label, from group labels [B]."""
    labels = group.cpu()
    for label in labels.unique():
        at = (labels == label).nonzero()[:, 0]
        if len(at) > 1:
            yield at


# name -> (function of pictures [b, 3, h, w] that gives [b], whether it needs full resolution)
PICTURE_STATISTICS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "saturation": (looks.saturation, False),
    "brightness": (looks.brightness, False),
    "contrast": (looks.contrast, False),
    "sharpness": (looks.sharpness, True),
    "clipped": (looks.clipped_share, True),
}


def _text_statistics(samples: Samples) -> dict[str, float]:
    texts = samples.texts or ()
    sizes = [float(n) for n in (map(len, texts) if samples.lengths is None else samples.lengths)]
    statistics = {
        "samples/length": sum(sizes) / len(sizes),
        "samples/repetition": sum(map(_repetition, texts)) / len(texts),
    }
    if samples.truncated is not None:
        statistics["samples/truncated"] = float(samples.truncated.double().mean())
    shares = [len({texts[i] for i in at.tolist()}) / len(at) for at in _group_positions(samples.group)]
    return statistics | ({"samples/distinct": sum(shares) / len(shares)} if shares else {})


def _talk_statistics(talks: Sequence[Conversation]) -> dict[str, float]:
    number = len(talks)
    wrong = sum(m.error is not None for talk in talks for messages in talk.shown for m in messages)
    statistics = {
        "talk/turns": sum(len(talk.said) for talk in talks) / number,
        "talk/calls": sum(talk.asked for talk in talks) / number,
        "talk/wrong_calls": wrong / number,
    }
    return statistics | {f"talk/end_{end}": sum(talk.end == end for talk in talks) / number for end in ENDS}


def _repetition(text: str) -> float:
    runs = [text[i : i + RUN] for i in range(len(text) - RUN + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
