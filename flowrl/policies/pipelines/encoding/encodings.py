"""Pictures and video from elsewhere in a pipeline's own layout of latents, encoded by the pipeline's own autoencoder.

How a pipeline scales and packs what its autoencoder gives is written nowhere that could be read. The ways that are
known are a closed list: each has to give states of the shape of the pipeline's own, and is proved by the pipeline's own
decode, which has to make of it what the autoencoder itself makes of its code. A pipeline for which none does is
refused. What the autoencoder itself loses of a picture is its affair.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flowrl.policies.errors import PolicyError
from flowrl.untyped import Network, Pipeline

MIN_DECIBELS = 40.0  # of the pipeline's decode against the autoencoder's own
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Encoding:
    """A way from pictures to a pipeline's states. decibels: how well the pipeline's decode inverts it."""

    pipe: Pipeline
    name: str
    change: Change
    shape: tuple[int, ...]  # of a sample's pixels
    device: torch.device
    decibels: float = 0.0

    def __call__(self, pixels: Tensor) -> Tensor:
        """The state [1, ...] float32 of one picture [3, H, W] or video [T, 3, H, W] in [0, 1], of any size in pixels.

        Raises PolicyError for pictures in the place of video and for another number of frames.
        """
        return self.change(code_of(self.pipe.vae, fitted(pixels, self.shape), self.device))


def code_of(vae: Network, pixels: Tensor, device: torch.device) -> Tensor:
    """What an autoencoder makes of a picture or video [..., 3, H, W] in [0, 1]: the mode of its code, [1, ...].

    An autoencoder that takes video takes a picture as video of one frame, and time after the channels.
    """
    home = next(vae.parameters()).device
    given = pixels[None].to(device, next(vae.parameters()).dtype) * 2 - 1
    if _takes_time(vae):
        given = given[:, :, None] if given.dim() == 4 else given.transpose(1, 2)
    vae.to(device)
    try:
        with torch.no_grad():
            encoded = vae.encode(given)
    finally:
        vae.to(home)
    return (encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent).float()


def pixels_of(vae: Network, code: Tensor) -> Tensor:
    """What an autoencoder makes of its code: images [1, 3, H, W] or video [1, T, 3, H, W] in [0, 1]."""
    with torch.no_grad():
        made = vae.decode(code.to(next(vae.parameters()).dtype)).sample.float()
    made = made.transpose(1, 2) if made.dim() == 5 else made
    return (made / 2 + 0.5).clamp(0, 1)


def fitted(pixels: Tensor, shape: Sequence[int]) -> Tensor:
    """A picture or video scaled until it covers shape [..., 3, H, W], and its middle cut out. Raises PolicyError where
    it has another number of frames."""
    if tuple(pixels.shape[:-3]) != tuple(shape[:-3]):
        wanted, got = (f"video of {s[0]} frames" if len(s) == 4 else "a picture" for s in (shape, pixels.shape))
        raise PolicyError(f"got {got} where this pipeline makes {wanted}: give others, or set pipeline.num_frames")
    height, width = shape[-2:]
    if pixels.shape[-2:] == (height, width):
        return pixels
    factor = max(height / pixels.shape[-2], width / pixels.shape[-1])
    size = [max(wanted, round(factor * have)) for wanted, have in zip((height, width), pixels.shape[-2:], strict=True)]
    frames = pixels if pixels.dim() == 4 else pixels[None]
    scaled = functional.interpolate(frames.float(), size=size, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return scaled[:, :, top : top + height, left : left + width].reshape(shape)


def find_encoding(
    pipe: Pipeline, made: Tensor, states: Sequence[int], decode: Callable[[Tensor], Tensor], device: torch.device
) -> Encoding:
    """The best proved of the known encodings.

    made: a sample of the pipeline, [3, H, W] or [T, 3, H, W]; states: the shape of its final state; decode: of states
    [1, ...] to pixels, by the pipeline. Raises PolicyError where none is proved.
    """
    name, remedy = type(pipe).__name__, "draw samples instead: set train.source=rollouts"
    vae = getattr(pipe, "vae", None)
    if vae is None or not hasattr(vae, "encode"):
        raise PolicyError(f"{name} has no autoencoder that could encode pictures: {remedy}")
    code = code_of(vae, made, device)
    own = pixels_of(vae.to(device), code)
    proved: list[Encoding] = []
    for way, change in _candidates(pipe):
        state = _or_none(change, code)
        if state is None or tuple(state.shape[1:]) != tuple(states):
            continue
        again = decode(state)
        if again.shape[1:] == own.shape[1:] or again.shape == own[:, 0].shape:
            proved.append(Encoding(pipe, way, change, tuple(made.shape), device, _decibels(again, own.view_as(again))))
    best = max(proved, key=lambda encoding: encoding.decibels, default=None)
    if best is None:
        raise PolicyError(f"{name}: no known encoding gives states of its shape {list(states)}: {remedy}")
    if not best.decibels >= MIN_DECIBELS:
        raise PolicyError(
            f"{name}: pictures that are encoded (as {best.name}) come back at {best.decibels:.1f} dB (accepted: at "
            f"least {MIN_DECIBELS:g}): {remedy}"
        )
    return best


def _candidates(pipe: Pipeline) -> Iterator[tuple[str, Change]]:
    """The known ways from an autoencoder's code to states: how it is scaled, then how it is packed."""
    for scaling, scale in _scalings(pipe):
        for packing, pack in _packings(pipe):
            yield f"{scaling}, {packing}", lambda code, scale=scale, pack=pack: pack(scale(code))


def _scalings(pipe: Pipeline) -> Iterator[tuple[str, Change]]:
    vae, config = pipe.vae, pipe.vae.config
    factor, shift = getattr(config, "scaling_factor", None) or 1.0, getattr(config, "shift_factor", None) or 0.0
    yield "scaled", lambda code: (code - shift) * factor
    if shift:
        yield "scaled, not shifted", lambda code: code * factor
    for owner in (dict(config), dict(vae.named_buffers())):
        mean, std = owner.get("latents_mean"), owner.get("latents_std")
        if mean is not None and std is not None:
            yield "normalised", lambda code, m=mean, s=std: (code - _channels(m, code)) / _channels(s, code)
            if factor != 1:
                yield (
                    "normalised and scaled",
                    lambda code, m=mean, s=std: (code - _channels(m, code)) * factor / _channels(s, code),
                )
    if hasattr(vae, "bn") and hasattr(pipe, "_patchify_latents"):  # FLUX.2 scales patches by a batch norm's statistics
        std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
        yield (
            "patched and normalised",
            lambda code: (pipe._patchify_latents(code) - _channels(vae.bn.running_mean, code)) / _channels(std, code),
        )


def _packings(pipe: Pipeline) -> Iterator[tuple[str, Change]]:
    yield "as it is", lambda code: code
    yield "without time", lambda code: code.squeeze(2)
    yield "time first", lambda code: code.transpose(1, 2)
    yield "channels last", lambda code: (code[:, :, None] if code.dim() == 4 else code).movedim(1, -1)
    if hasattr(pipe, "_pack_latents"):
        yield "packed", lambda code: _packed(pipe, code.squeeze(2) if code.dim() == 5 and code.shape[2] == 1 else code)
        yield "packed with time", lambda code: _packed(pipe, code)


def _packed(pipe: Pipeline, code: Tensor) -> Tensor:
    """A code by the pipeline's own packing, whose further arguments are sizes of it, by their usual names."""
    batch, channels, *_, height, width = code.shape
    known = {"batch_size": batch, "num_channels_latents": channels, "height": height, "width": width}
    known |= {"patch_size": getattr(pipe, "transformer_spatial_patch_size", 1)}
    known |= {"patch_size_t": getattr(pipe, "transformer_temporal_patch_size", 1)}
    asked = list(inspect.signature(pipe._pack_latents).parameters)[1:]
    return pipe._pack_latents(code, **{name: known[name] for name in asked})


def _or_none(change: Change, code: Tensor) -> Tensor | None:
    """What a candidate gives; None where it is not made for such a code."""
    try:
        return change(code)
    except (RuntimeError, ValueError, KeyError, IndexError):
        return None


def _channels(values: Sequence[float] | Tensor, code: Tensor) -> Tensor:
    return torch.as_tensor(values).to(code).view(1, -1, *[1] * (code.dim() - 2))


def _takes_time(vae: Network) -> bool:
    return any(module.__class__.__name__.endswith("Conv3d") for module in vae.modules())


def _decibels(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio of pixels in [0, 1]."""
    return float(-10 * torch.log10((a.float() - b.float()).square().mean() + 1e-20))
