"""What tests of single steps share: noise, levels of every kind, exact velocities, moments of a walk."""

from collections.abc import Callable

import torch
from torch import Tensor

MU, S0 = 0.5, 0.8  # data N(MU, S0^2)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def field(x: Tensor, s: float, signal: float | None = None) -> Tensor:
    """The exact velocity: the pair (x_0, eps) given x = signal x_0 + s eps is Gaussian. signal: 1 - s if not given."""
    a = 1 - s if signal is None else signal
    variance = a**2 * S0**2 + s**2
    return -MU + (s - a * S0**2) / variance * (x - a * MU)


def walk_moments(
    step: Callable, table: list[float], noise: float, signal: Callable | None = None
) -> tuple[float, float]:
    """Mean and variance at the end from N(0, 1), by probing each step at x = 0 and x = 1: every step is affine here."""
    mean, variance = 0.0, 1.0
    probes = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for s, s_next in zip(table, table[1:], strict=False):
        v = field(probes, s, None if signal is None else signal(s))
        out = step(probes, v, s, s_next, noise=noise, s_cap=table[1])
        shift, slope = out.mean[0].item(), (out.mean[1] - out.mean[0]).item()
        mean, variance = slope * mean + shift, slope**2 * variance + out.std.item() ** 2
    return mean, variance


# (s, s_next, s_cap) for latents of shape [3, 4, 5]
LEVELS = {
    "float": (0.7, 0.45, 0.9),
    "scalar": (torch.tensor(0.7), torch.tensor(0.45), torch.tensor(0.9)),
    "row": (torch.tensor([1.0, 0.7, 0.3]).reshape(3, 1, 1), torch.tensor([0.9, 0.45, 0.0]).reshape(3, 1, 1), 0.9),
    "token": (1 - 0.5 * draw(2, 3, 4, 1).sigmoid(), 0.5 * draw(3, 3, 4, 1).sigmoid(), torch.tensor(0.9)),
    "resting": (torch.tensor([1.0, 0.7, 0.0]).reshape(3, 1, 1), torch.tensor([0.9, 0.7, 0.0]).reshape(3, 1, 1), 0.9),
}
