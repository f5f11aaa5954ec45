"""Faults for the tests of `flowrl check` to find: a user's own steps and rewards, each wrong in one way."""

from typing import Any

import torch

from flowrl.contracts import Samples
from samplers.gaussian import Gaussian
from samplers.transitions import flow_sde


def loud(x: Any, v: Any, s: Any, s_next: Any, *, noise: Any, s_cap: Any) -> Gaussian:
    """Draws four times the noise that its mean makes up for."""
    right = flow_sde(x, v, s, s_next, noise=noise, s_cap=s_cap)
    return Gaussian(right.mean, 4 * right.std)


def restless(x: Any, v: Any, s: Any, s_next: Any, *, noise: Any, s_cap: Any) -> Gaussian:
    """Another mean in training than in the rollout, where several rows are stepped at once."""
    right = flow_sde(x, v, s, s_next, noise=noise, s_cap=s_cap)
    off = 1e-2 if torch.is_grad_enabled() and len(x) > 1 else 0.0
    return Gaussian(right.mean + off, right.std)


def cut(x: Any, v: Any, s: Any, s_next: Any, *, noise: Any, s_cap: Any) -> Gaussian:
    """No gradient, where several rows are stepped at once; the few numbers it is tried on before do not tell."""
    return flow_sde(x, v.detach() if len(x) > 1 and v.numel() > 256 else v, s, s_next, noise=noise, s_cap=s_cap)


def shaken(x: Any, v: Any, s: Any, s_next: Any, *, noise: Any, s_cap: Any) -> Gaussian:
    """Is not Euler's step where there is no noise."""
    right = flow_sde(x, v, s, s_next, noise=noise, s_cap=s_cap)
    return Gaussian(right.mean * (1.001 if noise == 0 else 1.0), right.std)


def constant(samples: Samples) -> torch.Tensor:
    """Cannot tell one sample from another."""
    return torch.ones(len(samples))


def unsure(samples: Samples) -> torch.Tensor:
    """Cannot score the first sample."""
    return torch.arange(len(samples)).float().masked_fill(torch.arange(len(samples)) == 0, torch.nan)


def broken(samples: Samples) -> torch.Tensor:
    """Raises."""
    raise KeyError("colour")


class Unmade:
    """Cannot be constructed."""

    def __init__(self) -> None:
        raise OSError("weights are not there")

    def __call__(self, samples: Samples) -> torch.Tensor:
        raise AssertionError
