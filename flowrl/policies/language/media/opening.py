"""Files of pictures, videos and sounds as processors take them.

Pictures, GIFs and folders of frames are read by Pillow, WAV files by Python itself; other videos by PyAV, other sounds
by what transformers finds installed (soundfile with soxr, or torchcodec).
"""

import inspect
import math
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence
from transformers.audio_utils import load_audio
from transformers.video_utils import VideoMetadata

from flowrl.media.files import media_kind
from flowrl.policies.errors import PolicyError
from flowrl.untyped import Processor

FAULTS = (OSError, ValueError, ImportError, RuntimeError, EOFError, wave.Error)


def opened(path: str | Image.Image, processor: Processor) -> Any:
    """A picture in RGB; a video as (frames uint8 [T, H, W, 3], what is known of them, or None where frames were chosen
    by whoever wrote the folder); a sound as float32 [T] at the processor's rate. Raises PolicyError where unreadable.
    """
    if isinstance(path, Image.Image):
        return path.convert("RGB")
    kind = media_kind(path)
    try:
        if kind == "audio":
            return sound(path, sampling_rate(processor))
        if kind == "video":
            return frames(path)
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except FAULTS as error:
        reason = " ".join(str(error).split())[:160]
        what = {"image": "picture", "audio": "sound"}.get(kind, kind)
        raise PolicyError(
            f"{path}: cannot be read as a {what} ({type(error).__name__}: {reason}); give another file, or install "
            "what reads it (pip install av for videos, soundfile soxr for sounds, or 'flowrl-toolkit[media]' for both)"
        ) from error


def frames(path: str) -> tuple[np.ndarray, VideoMetadata | None]:
    """The frames of a video; of a folder the pictures in it, by name. Raises ValueError for a folder without any."""
    place = Path(path)
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if file.is_file() and media_kind(str(file)) == "image")
        if not files:
            raise ValueError("a folder without pictures")
        return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]), None
    if place.suffix.lower() == ".gif":
        with Image.open(place) as clip:
            shown = np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(clip)])
            fps = 1000 / float(clip.info.get("duration") or 100)  # milliseconds a frame
    else:
        shown, fps = clip_frames(path)
    size = {"height": shown.shape[1], "width": shown.shape[2]}
    known = VideoMetadata(total_num_frames=len(shown), fps=fps, duration=len(shown) / fps, **size)
    known.frames_indices = list(range(len(shown)))
    return shown, known


def clip_frames(path: str) -> tuple[np.ndarray, float]:
    """The frames of a video file, uint8 [T, H, W, 3], and how many there are a second.

    They are counted as they are read: what a file's header says of their number is missing from some formats. Raises
    ValueError for a file without any.
    """
    import av

    try:
        with av.open(path) as file:
            if not file.streams.video:
                raise ValueError("a file without a video in it")
            stream = file.streams.video[0]
            found = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in file.decode(stream)]
            rate = stream.average_rate or stream.guessed_rate
    except av.error.FFmpegError as error:
        raise ValueError(str(error)) from error
    if not found:
        raise ValueError("a video without frames")
    times = [time for time, _ in found if time is not None]
    span = times[-1] - times[0] if len(times) > 1 else 0.0
    fps = float(rate) if rate else (len(times) - 1) / span if span > 0 else 1.0
    return np.stack([shown for _, shown in found]), fps


def sampling_rate(processor: Processor) -> int:
    """Samples of sound a second that a processor takes. Raises ValueError for one of pictures alone."""
    for name in ("feature_extractor", "audio_processor"):
        if (rate := getattr(getattr(processor, name, None), "sampling_rate", None)) is not None:
            return int(rate)
    raise ValueError(f"{type(processor).__name__} takes no sounds")


def sound(path: str, rate: int) -> np.ndarray:
    """A sound as one channel, float32 [T], full scale at -1 and 1, at that rate."""
    if Path(path).suffix.lower() != ".wav":
        return load_audio(path, sampling_rate=rate)
    with wave.open(path) as file:
        width, channels, own = file.getsampwidth(), file.getnchannels(), file.getframerate()
        raw = file.readframes(file.getnframes())
    if width not in (2, 4):
        return load_audio(path, sampling_rate=rate)
    whole = np.frombuffer(raw, {2: "<i2", 4: "<i4"}[width]).reshape(-1, channels).mean(1) / 2.0 ** (8 * width - 1)
    return whole.astype(np.float32) if own == rate else resampled(whole, own, rate)


def resampled(samples: np.ndarray, own: int, rate: int) -> np.ndarray:
    """A sound at another rate, float32, through its spectrum: what is above half the lower rate is left out."""
    number = math.ceil(len(samples) * rate / own)
    spectrum = torch.fft.rfft(torch.from_numpy(samples))
    kept = min(len(spectrum), number // 2 + 1)
    made = torch.fft.irfft(spectrum[:kept], n=number) * (number / len(samples))
    return made.float().numpy()


def arguments_of(media: Mapping[str, list[Any]], processor: Processor) -> dict[str, Any]:
    """A processor's arguments for one text, from what was opened of each kind: image, video, audio."""
    given: dict[str, Any] = {}
    if pictures := media.get("image"):
        given["images"] = [pictures]
    if clips := media.get("video"):
        known = [one for _, one in clips]
        shown = [[frames for frames, _ in clips]]
        if "videos" not in inspect.signature(processor.__call__).parameters and _takes_videos_alone(processor):
            return {"images": shown}
        given["videos"] = shown
        if all(one is not None for one in known):
            given["video_metadata"] = [known]
        else:
            given["do_sample_frames"] = False
    if sounds := media.get("audio"):
        given |= {"audio": list(sounds), "sampling_rate": sampling_rate(processor)}
    return given


def _takes_videos_alone(processor: Processor) -> bool:
    """Whether a processor reads videos and no pictures, and so takes them where others take pictures."""
    return hasattr(processor, "video_processor") and not hasattr(processor, "image_processor")
