"""What DDPM models predict, as v = eps - x_0 in variance-preserving coordinates (see `renoising.vp_ddim`)."""

import torch
from torch import Tensor

from samplers.levels import Level
from samplers.renoising import signal

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def velocity_from(prediction_type: str, x: Tensor, output: Tensor, s: Level) -> Tensor:
    """v = eps - x_0 [R, ...] of a model's output [R, ...] at the latent x = a x_0 + s eps, a = sqrt(1 - s^2).

    Computed in float32 or wider.
    prediction_type, in the words of diffusers' configs: epsilon; sample, which is x_0; or v_prediction, a eps - s x_0.
    s: float, or tensor broadcastable to x. An epsilon says nothing about x_0 at s = 1, nor a sample about eps at s = 0.

    Raises ValueError for another prediction_type.
    """
    dtype = torch.promote_types(torch.promote_types(x.dtype, output.dtype), torch.float32)
    a = signal(s)
    ours, theirs = _weights(prediction_type, a, s)
    ours, theirs = (w.to(dtype) if isinstance(w, Tensor) else w for w in (ours, theirs))
    return (output.to(dtype) * theirs).add_(x.to(dtype) * ours)


def clean_from(x: Tensor, v: Tensor, s: Level) -> Tensor:
    """x_0 = (x - s v) / (a + s), [R, ...], in variance-preserving coordinates, from v of `velocity_from`."""
    return (x - s * v) / (signal(s) + s)


def _weights(prediction_type: str, a: Level, s: Level) -> tuple[Level, Level]:
    """(weight of x, weight of the output) in v."""
    if prediction_type == "epsilon":
        return -1 / a, (a + s) / a
    if prediction_type == "v_prediction":
        return s - a, s + a
    if prediction_type == "sample":
        return 1 / s, -(a + s) / s
    raise ValueError(f"prediction_type={prediction_type!r}: accepted are {', '.join(PREDICTIONS)}")
