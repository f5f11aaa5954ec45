"""An autoencoder at work: in a precision of its own, a few rows at a time, its pictures in host memory as they come."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowrl.policies.errors import PolicyError
from flowrl.untyped import Nest, Network, Pipeline

NAMES = ("vae", "audio_vae", "vqvae", "movq")


@dataclass(frozen=True)
class Autoencoding:
    """How a pipeline's autoencoders work.

    slicing, tiling: their own, of diffusers: a sample at a time, a sample in overlapping tiles (which changes it a
    little). dtype: of their weights and of what they compute in (None: that of the model). batch: rows that are decoded
    at once, whose pictures then go to host memory before the next (None: all). channels_last: weights of convolutions
    lie channel by channel, and what they give does so too, as a GPU's kernels for half precision have it.
    """

    slicing: bool = False
    tiling: bool = False
    dtype: torch.dtype | None = None
    batch: int | None = None
    channels_last: bool = False

    def set_up(self, pipe: Pipeline) -> None:
        """Switches a pipeline's autoencoders over. Raises PolicyError where there is none, or one cannot do it."""
        found: dict[str, Network] = {n: m for n in NAMES if isinstance(m := getattr(pipe, n, None), nn.Module)}
        if not found:
            raise PolicyError(f"vae: {type(pipe).__name__} has no autoencoder among its components; remove vae")
        for name, vae in found.items():
            if self.dtype is not None:
                vae.to(self.dtype)
            if self.channels_last and not _channels_last(vae):
                raise PolicyError(
                    f"vae.channels_last: {name} ({type(vae).__name__}) has no convolutions; set vae.channels_last=false"
                )
            for wanted, method in ((self.slicing, "slicing"), (self.tiling, "tiling")):
                if wanted and not _enabled(vae, method):
                    raise PolicyError(
                        f"vae.{method}: {name} ({type(vae).__name__}) cannot do that; set vae.{method}=false"
                    )

    def decode(self, decode: Any, z: Tensor, *args: Any, **kwargs: Any) -> Nest:
        """What a `decode` gives for latents z [R, ...]; in parts where no gradient is taken."""
        z = z.to(self.dtype) if self.dtype is not None and z.is_floating_point() else z
        if self.batch is None or self.batch >= len(z) or torch.is_grad_enabled():
            return decode(z, *args, **kwargs)
        rows, parts = len(z), []
        for begin in range(0, rows, self.batch):
            at = slice(begin, begin + self.batch)
            own = [_part(value, at, rows) for value in args]
            result = decode(z[at], *own, **{name: _part(value, at, rows) for name, value in kwargs.items()})
            parts.append(tuple(one.cpu() if isinstance(one, Tensor) else one for one in _values(result)))
        whole = tuple(
            torch.cat(list(one)) if isinstance(one[0], Tensor) else one[0] for one in zip(*parts, strict=True)
        )
        return whole if isinstance(result, tuple) else type(result)(**dict(zip(result, whole, strict=True)))


def _enabled(vae: Network, what: str) -> bool:
    """Whether an autoencoder could be told to work in slices or tiles. diffusers' methods exist where they do nothing:
    what tells is the attribute that they set."""
    enable = getattr(vae, f"enable_{what}", None)
    if enable is None or not hasattr(vae, f"use_{what}"):
        return False
    enable()
    return True


def _channels_last(vae: Network) -> int:
    """Lays the weights of convolutions out channel by channel; how many there are."""
    layouts = {nn.Conv2d: torch.channels_last, nn.Conv3d: torch.channels_last_3d}
    found = [(part, layouts[kind]) for part in vae.modules() for kind in layouts if isinstance(part, kind)]
    for part, layout in found:
        part.weight.data = part.weight.data.contiguous(memory_format=layout)
    return len(found)


def _values(result: Nest) -> Nest:
    return result if isinstance(result, tuple) else tuple(result.values())


def _part(value: Nest, at: slice, rows: int) -> Nest:
    return value[at] if isinstance(value, Tensor) and value.shape[:1] == (rows,) else value
