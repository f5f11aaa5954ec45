"""What pipelines return for output_type="pt", as images [B, 3, H, W], video [B, T, 3, H, W] and sound [B, C, T].

Most return just that. A few hand out what their decoder made, in a layout or range of its own: those are known here by
class. Whatever else comes as neither pictures nor sound is refused: a reward would score it without a word.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flowrl.media.pictures import picture_fault
from flowrl.policies.errors import PolicyError

Media = dict[str, Tensor]  # "images", "video" and "audio", as in `contracts.Samples`; gradient where there is any

_SOUND = ("audios", "audio", "sound")
_MIXED = "make all alike, by height and width, num_frames or the duration under `pipeline`"


def media_of(output: Any, pipe: Any, rows: int) -> Media:
    """Pictures or video float32 in [0, 1], and sound float32, that a pipeline returned for `rows` rows.

    Raises PolicyError, naming the pipeline, for anything else.
    """
    name = type(pipe).__name__
    parts: Mapping[str, Any] = {"images": output[0]} if isinstance(output, tuple) else output
    found: Media = {}
    for i, (key, value) in enumerate(parts.items()):
        if value is None:
            continue
        if key in _SOUND:
            found["audio"] = _sound(value, name, rows)
        elif i == 0:  # further ones are words about it, or latents
            pixels = _pictures(value, pipe, rows)
            found["video" if pixels.dim() == 5 else "images"] = pixels
    if not found:
        raise PolicyError(f"{name} returned {', '.join(parts) or 'nothing'}; accepted: images, frames or audio")
    return found


def sample_rate(pipe: Any) -> int | None:
    """Samples of sound a second that a pipeline makes; None where it says nothing of them."""
    for owner, key in (
        ("vocoder", "output_sampling_rate"),  # LTX-2, whose audio_sampling_rate is that of its spectrograms
        ("vocoder", "sampling_rate"),
        ("sound_tokenizer", "sampling_rate"),
        ("audio_vae", "sample_rate"),
        ("vae", "sampling_rate"),
        ("vae", "sample_rate"),
    ):
        rate = getattr(getattr(getattr(pipe, owner, None), "config", None), key, None)
        if rate is not None:
            return int(rate)
    return None


def joined_media(parts: list[Media], name: str) -> Media:
    """The samples of several calls in one. Raises PolicyError where they are not of one size."""
    found = {}
    for key in parts[0]:
        shapes = {tuple(part[key].shape[1:]) for part in parts}
        if len(shapes) > 1:
            sizes = " and ".join(str(list(shape)) for shape in sorted(shapes)[:2])
            raise PolicyError(f"{name}: {key} of one rollout have sizes {sizes}; {_MIXED}")
        found[key] = torch.cat([part[key] for part in parts])
    return found


def check_size(media: Media, asked: Mapping[str, Any], pipe: Any) -> None:
    """Raises PolicyError where pictures have another size than the height and width that were asked for.

    A whole multiple of it, as an upscaler returns, is accepted.
    """
    pixels = next((media[key] for key in ("images", "video") if key in media), None)
    height, width = asked.get("height"), asked.get("width")
    if pixels is None or not isinstance(height, int) or not isinstance(width, int):
        return
    got = tuple(pixels.shape[-2:])
    if got[0] % height or got[1] % width or got[0] // height != got[1] // width:
        remedy = f"set pipeline.height={got[0]} and pipeline.width={got[1]}"
        if "max_area" in inspect.signature(type(pipe).__call__).parameters:
            remedy = f"it scales to an area of max_area: set pipeline.max_area={height * width} too, or {remedy}"
        raise PolicyError(
            f"{type(pipe).__name__} returned pictures of {got[0]} x {got[1]} (height x width) where {height} x {width} "
            f"was asked for: {remedy}"
        )


def _pictures(value: Any, pipe: Any, rows: int) -> Tensor:
    name = type(pipe).__name__
    first = value if isinstance(value, Tensor) else _stacked(value, name)
    turn = _TURNS.get(name)
    pixels = first.float() if turn is None else turn(first.float(), pipe)
    finite = pixels.detach().isfinite()
    wrong = picture_fault(
        pixels if not finite.any() else pixels.detach().where(finite, 0.5)
    )  # some may be: they get no score
    if wrong is None and len(pixels) != rows:
        wrong = f"{len(pixels)} pictures of shape {tuple(pixels.shape[1:])} for {rows} rows"
    if wrong is not None:
        raise PolicyError(f"{name} returned {wrong} (output_type='pt')")
    return pixels.clamp(0, 1)


def _stacked(found: Any, name: str) -> Tensor:
    """A batch of what came as a list or an array. Raises PolicyError where its entries are not alike."""
    try:
        return torch.stack([torch.as_tensor(one) for one in found])
    except (TypeError, ValueError, RuntimeError):
        raise PolicyError(
            f"{name} returned a {type(found).__name__} that is no batch of pictures or sound of one size "
            "(output_type='pt'); accepted: images [B, 3, H, W], video [B, T, 3, H, W], sound [B, C, T]"
        ) from None


def _sound(value: Any, name: str, rows: int) -> Tensor:
    """float32 [B, C, T]; one channel may have come without its dimension, and one row without its own."""
    sound = (value if isinstance(value, Tensor) else _stacked(value, name)).float()
    if sound.dim() == 2:
        sound = sound[None] if name in _ONE_ROW else sound[:, None]
    if sound.dim() != 3 or len(sound) != rows or not sound.numel():
        raise PolicyError(f"{name} returned sound of shape {tuple(sound.shape)} for {rows} rows; accepted: [B, C, T]")
    if not sound.detach().isfinite().any():
        raise PolicyError(f"{name} returned sound with no finite value")
    return sound


def _signed(pixels: Tensor, pipe: Any) -> Tensor:
    """[-1, 1] and beyond, as DeepFloyd IF's pixel-space model leaves them."""
    return (pixels / 2 + 0.5).clamp(0, 1)


def _decoded(pixels: Tensor, pipe: Any) -> Tensor:
    """A decoder's own video [B, 3, T, H, W] in [-1, 1] and, where it was not tiled, a little beyond."""
    return (pixels.transpose(1, 2) / 2 + 0.5).clamp(0, 1)


def _coded_light(pixels: Tensor, pipe: Any) -> Tensor:
    """Linear light [B, T, H, W, 3] from 0 up, as LTX-2 HDR makes it, coded again by its processor's LogC3 curve.

    That is the picture its decoder made, in [0, 1]. ARRI, "ALEXA LogC curve", 2017: c log10(a x + b) + d above the cut,
    e x + f below.
    """
    a, b, c, d, e, f, cut = (getattr(pipe.hdr_video_processor, f"_LOGC3_{key}") for key in _LOGC3)
    light = pixels.movedim(-1, 2)
    curve = c * torch.log10(a * light.clamp(min=cut) + b) + d
    return torch.where(light >= cut, curve, e * light + f).clamp(0, 1)


_LOGC3 = ("A", "B", "C", "D", "E", "F", "CUT")


def _on_white(pixels: Tensor, pipe: Any) -> Tensor:
    """Red, green, blue and alpha [B, 4, H, W], laid over white, as this model sees transparent pictures itself."""
    if pixels.dim() != 4 or pixels.shape[1] != 4:
        return pixels
    colour, alpha = pixels[:, :3], pixels[:, 3:]
    return colour * alpha + (1 - alpha)


def _one(pixels: Tensor, pipe: Any) -> Tensor:
    """Video [T, 3, H, W] of the one row of a call."""
    return pixels[None] if pixels.dim() == 4 else pixels


_ONE_ROW = ("Cosmos3OmniPipeline",)
_TURNS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "IFPipeline": _signed,
    "IFImg2ImgPipeline": _signed,
    "IFInpaintingPipeline": _signed,
    "IFSuperResolutionPipeline": _signed,
    "IFImg2ImgSuperResolutionPipeline": _signed,
    "IFInpaintingSuperResolutionPipeline": _signed,
    "Cosmos3OmniPipeline": _one,
    "LTXI2VLongMultiPromptPipeline": _decoded,
    "LTX2HDRPipeline": _coded_light,
    "QwenImage21Pipeline": _on_white,
}
