"""The arguments that a pipeline is called with: the recipe's, and those of the prompts themselves."""

import wave
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import cast

import numpy
import torch
from diffusers.utils import load_video
from PIL import Image
from torch import Tensor

from flowrl.contracts import Prompt
from flowrl.policies.errors import PolicyError
from flowrl.untyped import Nest

Call = dict[str, Nest] | Callable[[Sequence[Prompt]], dict[str, Nest]]

# Pipelines whose prompt is one text, whatever their signature says.
_ONE = ("DreamLitePipeline", "DreamLiteMobilePipeline", "SanaWMPipeline", "WanVACEPipeline")
_OF_ROWS = ("negative_prompt", "lyrics")  # texts, one for each row

_CLIPS = (".gif", ".mp4", ".webm", ".mov", ".mkv", ".avi")


def call_arguments(
    call: Call, prompts: Sequence[Prompt], accepts: Collection[str] = (), *, once: bool = False
) -> dict[str, Nest]:
    """A pipeline's arguments for these rows, except its noise. A prompt's own arguments override the recipe's.

    accepts: names of the arguments that the pipeline takes. once: the rows share their files, which are passed once;
    otherwise several rows have an entry each, so that what a pipeline draws for a picture comes from the generator of
    its own row.

    Lists are fresh copies, since some pipelines write into them. Raises PolicyError if rows cannot share a call.
    """
    arguments: dict[str, Nest] = {"prompt": [p.text for p in prompts]}
    if "lyrics" in accepts:  # ACE-Step's are "" by default, and one for each prompt of a list
        arguments["lyrics"] = [""] * len(prompts)
    if any(p.media for p in prompts):
        arguments["image"] = open_by_row([_media(p) for p in prompts], once=once)
    for name, value in (call(prompts) if callable(call) else call).items():
        if name.startswith(_OF_ROWS) and isinstance(value, str):
            value = [value] * len(prompts)
        arguments[name] = list(value) if isinstance(value, list) else value
    for name in dict.fromkeys(name for p in prompts for name in p.call):
        arguments[name] = _column(name, prompts, arguments.get(name), once=once)
    return arguments


def takes_one_prompt(pipeline: type) -> bool:
    """Whether a pipeline's call takes a single text as its prompt, not a list."""
    return pipeline.__name__ in _ONE


def single_prompt_arguments(arguments: dict[str, Nest]) -> dict[str, Nest]:
    """The arguments of a call of one row for a pipeline that takes no lists. Raises PolicyError for more rows."""
    number = len(arguments["prompt"])
    if number != 1:
        raise PolicyError(
            f"this pipeline takes one prompt per call and was given {number}: set train.rollout_batch=1 and "
            "train.micro_batch=1"
        )
    single = {
        name: value[0]
        for name, value in arguments.items()
        if isinstance(value, list) and len(value) == 1 and name.startswith(("prompt", "generator", *_OF_ROWS))
    }
    return arguments | single


def is_refusal(error: BaseException) -> bool:
    """Whether an error comes from a pipeline's own check of its arguments."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and frame.tb_frame.f_code.co_name.startswith(("check_inputs", "_check_inputs"))


def open_by_row(files: Sequence[Nest], *, once: bool = False) -> Nest:
    """The opened files of each row, or those of the first: some pipelines take no list, or treat its entries as
    several pictures of each row (see sharing.py)."""
    return _open_files(files[0]) if once or len(files) == 1 else [_open_files(one) for one in files]


def _column(name: str, prompts: Sequence[Prompt], default: Nest, *, once: bool) -> Nest:
    """The values of one argument for these rows: a list of texts, files, or the one value that all share."""
    values = [p.call.get(name) for p in prompts]
    if any(isinstance(value, str) for value in values):
        others = default if isinstance(default, list) else [default or ""] * len(prompts)
        return [other if value is None else value for value, other in zip(values, others, strict=True)]
    if any(value != values[0] for value in values) and not any(map(_is_file, values)):
        raise PolicyError(f"{name}: rows of one call have {values[0]!r} and another value; give all prompts the same")
    return open_by_row(values, once=once) if any(map(_is_file, values)) else values[0]


def has_files(prompt: Prompt) -> bool:
    """Whether a prompt has pictures, clips or sound."""
    return bool(prompt.media) or any(map(_is_file, prompt.call.values()))


def _is_file(value: object) -> bool:
    return isinstance(value, Path) or (isinstance(value, list) and any(isinstance(item, Path) for item in value))


def _media(prompt: Prompt) -> Nest:
    paths = [Path(path) for path in prompt.media]
    return paths[0] if len(paths) == 1 else paths


def _open_files(value: Nest) -> Nest:
    """The value with each path replaced by its picture, the frames of its clip, or its sound [C, T].

    Raises PolicyError for a file that cannot be opened.
    """
    if isinstance(value, list):
        return [_open_files(item) for item in value]
    if not isinstance(value, Path):
        return value
    try:
        if value.suffix.lower() == ".wav":
            return _sound(value)
        if value.suffix.lower() in _CLIPS:
            return [frame.convert("RGB") for frame in cast("list[Image.Image]", load_video(str(value)))]
        return Image.open(value).convert("RGB")
    except (OSError, ValueError, ImportError, EOFError, wave.Error) as error:
        reason = " ".join(str(error).split())[:160]
        raise PolicyError(f"{value}: cannot be opened ({type(error).__name__}: {reason}); give another file") from None


def open_pixels(path: Path) -> Tensor:
    """A picture float32 [3, H, W], or the frames of a clip [T, 3, H, W], in [0, 1].

    Raises PolicyError for a file that cannot be opened.
    """
    opened = _open_files(path)
    frames = [torch.from_numpy(numpy.array(f)) for f in (opened if isinstance(opened, list) else [opened])]
    pixels = torch.stack(frames).movedim(-1, 1).float() / 255
    return pixels if isinstance(opened, list) else pixels[0]


def _sound(path: Path) -> Tensor:
    """The samples of a WAV file of 16 bits, float32 [C, T] in [-1, 1]."""
    with wave.open(str(path)) as file:
        if file.getsampwidth() != 2:
            raise ValueError(f"{8 * file.getsampwidth()} bits per sample; 16 are accepted")
        frames = bytearray(file.readframes(file.getnframes()))
        return torch.frombuffer(frames, dtype=torch.int16).reshape(-1, file.getnchannels()).T.float() / 32768
