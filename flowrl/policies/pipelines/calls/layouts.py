"""What pipelines return for output_type="pt", as images [B, 3, H, W], video [B, T, 3, H, W] and sound [B, C, T].

Most return just that. A few return their decoder's output in a layout or range of its own: those are known here by
class. Anything else that is neither pictures nor sound is refused, because a reward would score it silently.
"""

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from flowrl.media.pictures import picture_fault
from flowrl.policies.errors import PolicyError
from flowrl.untyped import Nest, Pipeline, PipelineOutput

Media = dict[str, Tensor]  # "images", "video" and "audio", as in `contracts.Samples`; gradient where there is any

_SOUND = ("audios", "audio", "sound")
_MIXED = "make all alike, by height and width, num_frames or the duration under `pipeline`"


def media_of(output: PipelineOutput, pipe: Pipeline, rows: int) -> Media:
    """Pictures or video float32 in [0, 1], and sound float32, that a pipeline returned for `rows` rows.

    Raises PolicyError, naming the pipeline, for anything else.
    """
    name = type(pipe).__name__
    parts: Mapping[str, object] = {"images": output[0]} if isinstance(output, tuple) else output
    media: Media = {}
    for i, (key, value) in enumerate(parts.items()):
        if value is None:
            continue
        if key in _SOUND:
            media["audio"] = _sound(value, name, rows)
        elif i == 0:  # further ones are words about it, or latents
            pixels = _pictures(value, pipe, rows)
            media["video" if pixels.dim() == 5 else "images"] = pixels
    if not media:
        raise PolicyError(f"{name} returned {', '.join(parts) or 'nothing'}; accepted: images, frames or audio")
    return media


def sample_rate(pipe: Pipeline) -> int | None:
    """The sample rate, in Hz, of the sound that a pipeline makes; None if it does not say."""
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


def join_media(parts: list[Media], name: str) -> Media:
    """The samples of several calls in one. Raises PolicyError if their sizes differ."""
    if len(parts) == 1:
        return parts[0]
    joined = {}
    for key in parts[0]:
        shapes = {tuple(part[key].shape[1:]) for part in parts}
        if len(shapes) > 1:
            sizes = " and ".join(str(list(shape)) for shape in sorted(shapes)[:2])
            raise PolicyError(f"{name}: {key} of one rollout have sizes {sizes}; {_MIXED}")
        joined[key] = torch.cat([part[key] for part in parts])
    return joined


def check_size(media: Media, asked: Mapping[str, object], pipe: Pipeline) -> None:
    """Raises PolicyError if pictures have another size than the requested height and width.

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


def _pictures(value: object, pipe: Pipeline, rows: int) -> Tensor:
    name = type(pipe).__name__
    first = value if isinstance(value, Tensor) else _stack(value, name)
    convert = _CONVERSIONS.get(name)
    pixels = first.float() if convert is None else convert(first.float(), pipe)
    wrong = picture_fault(pixels) and picture_fault(_finite(pixels.detach()))
    if wrong is None and len(pixels) != rows:
        wrong = f"{len(pixels)} pictures of shape {tuple(pixels.shape[1:])} for {rows} rows"
    if wrong is not None:
        raise PolicyError(f"{name} returned {wrong} (output_type='pt')")
    return pixels.clamp(0, 1)


def _finite(pixels: Tensor) -> Tensor:
    """Pixels with 0.5 in place of values that are not finite, whose samples get no score; as they are if none is."""
    finite = pixels.isfinite()
    return pixels if not finite.any() else pixels.where(finite, 0.5)


def _stack(entries: Nest, name: str) -> Tensor:
    """A batch from a list or an array. Raises PolicyError if its entries differ in size."""
    try:
        return torch.stack([torch.as_tensor(one) for one in entries])
    except (TypeError, ValueError, RuntimeError):
        raise PolicyError(
            f"{name} returned a {type(entries).__name__} that is no batch of pictures or sound of one size "
            "(output_type='pt'); accepted: images [B, 3, H, W], video [B, T, 3, H, W], sound [B, C, T]"
        ) from None


def _sound(value: object, name: str, rows: int) -> Tensor:
    """float32 [B, C, T]; a single channel may come without its dimension, and a single row without its own."""
    sound = (value if isinstance(value, Tensor) else _stack(value, name)).float()
    if sound.dim() == 2:
        sound = sound[None] if name in _ONE_ROW else sound[:, None]
    if sound.dim() != 3 or len(sound) != rows or not sound.numel():
        raise PolicyError(f"{name} returned sound of shape {tuple(sound.shape)} for {rows} rows; accepted: [B, C, T]")
    if not sound.detach().isfinite().any():
        raise PolicyError(f"{name} returned sound with no finite value")
    return sound


def _from_signed(pixels: Tensor, pipe: Pipeline) -> Tensor:
    """[-1, 1] and beyond, as DeepFloyd IF's pixel-space model leaves them."""
    return (pixels / 2 + 0.5).clamp(0, 1)


def _from_decoder(pixels: Tensor, pipe: Pipeline) -> Tensor:
    """A decoder's own video [B, 3, T, H, W] in [-1, 1] and, if it was not tiled, a little beyond."""
    return (pixels.transpose(1, 2) / 2 + 0.5).clamp(0, 1)


def _encode_logc3(pixels: Tensor, pipe: Pipeline) -> Tensor:
    """Linear light [B, T, H, W, 3] from 0 up, as LTX-2 HDR makes it, encoded again by its processor's LogC3 curve.

    That is the picture of its decoder, in [0, 1]. ARRI, "ALEXA LogC curve", 2017: c log10(a x + b) + d above the cut,
    e x + f below.
    """
    a, b, c, d, e, f, cut = (getattr(pipe.hdr_video_processor, f"_LOGC3_{key}") for key in _LOGC3)
    light = pixels.movedim(-1, 2)
    curve = c * torch.log10(a * light.clamp(min=cut) + b) + d
    return torch.where(light >= cut, curve, e * light + f).clamp(0, 1)


_LOGC3 = ("A", "B", "C", "D", "E", "F", "CUT")


def _on_white(pixels: Tensor, pipe: Pipeline) -> Tensor:
    """Red, green, blue and alpha [B, 4, H, W] over white, which is how this model itself sees transparent pictures."""
    if pixels.dim() != 4 or pixels.shape[1] != 4:
        return pixels
    colour, alpha = pixels[:, :3], pixels[:, 3:]
    return colour * alpha + (1 - alpha)


def _with_row(pixels: Tensor, pipe: Pipeline) -> Tensor:
    """Video [T, 3, H, W] of a call's only row, as [1, T, 3, H, W]."""
    return pixels[None] if pixels.dim() == 4 else pixels


_ONE_ROW = ("Cosmos3OmniPipeline",)
_CONVERSIONS: dict[str, Callable[[Tensor, object], Tensor]] = {
    "IFPipeline": _from_signed,
    "IFImg2ImgPipeline": _from_signed,
    "IFInpaintingPipeline": _from_signed,
    "IFSuperResolutionPipeline": _from_signed,
    "IFImg2ImgSuperResolutionPipeline": _from_signed,
    "IFInpaintingSuperResolutionPipeline": _from_signed,
    "Cosmos3OmniPipeline": _with_row,
    "LTXI2VLongMultiPromptPipeline": _from_decoder,
    "LTX2HDRPipeline": _encode_logc3,
    "QwenImage21Pipeline": _on_white,
}
