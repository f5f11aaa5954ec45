"""Sigma tables: float32 tensors [num_steps + 1] of noise levels that fall from 1 to 0."""

import math

import torch
from torch import Tensor


def linear(num_steps: int) -> Tensor:
    """Equally spaced levels [num_steps + 1]: 1, 1 - 1/N, ..., 0."""
    return _grid(num_steps, 0.0, num_steps + 1, torch.float32)


def shifted(num_steps: int, shift: float) -> Tensor:
    """Equally spaced levels [num_steps + 1] moved by `shift_time`, the table of DanceGRPO, MixGRPO and BranchGRPO."""
    # float32 throughout, as published: where timesteps are truncated, 0.875 rounded down to 0.87499994 becomes 874.
    return shift_time(_grid(num_steps, 0.0, num_steps + 1, torch.float32), shift)


def exponential(num_steps: int, mu: float) -> Tensor:
    """The resolution-dependent table of FLUX and Qwen-Image: linear levels moved by `shift_time_exponential`, then 0.

    Returns [num_steps + 1]. mu: see `calculate_shift_mu`; equal to `shifted` with shift = e^mu.
    """
    return _closed(shift_time_exponential(_grid(num_steps, 0.0, num_steps + 1)[:-1], mu))


def flow_match_euler(num_steps: int, shift: float, *, num_train_timesteps: int = 1000) -> Tensor:
    """What diffusers' FlowMatchEulerDiscreteScheduler(shift=shift).set_timesteps(num_steps) holds as sigmas (SD3).

    Returns [num_steps + 1].
    The shift acts twice at the low end: the smallest training level is shifted, the N levels are spread evenly from 1
    down to it, and all are shifted again. The last level above 0 is then the same for every N (0.0089 at shift 3): the
    step before the last is long, and the last one draws next to no noise.
    """
    lowest = shift_time(torch.tensor(1 / num_train_timesteps, dtype=torch.float64), shift).item()
    return _closed(shift_time(_grid(num_steps, lowest, num_steps), shift))


def calculate_shift_mu(
    image_seq_len: int,
    *,
    base_seq_len: int = 256,
    max_seq_len: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
) -> float:
    """mu for `exponential`: the line through (base_seq_len, base_shift) and (max_seq_len, max_shift), not clipped.

    image_seq_len: number of latent tokens the transformer sees (1024 px FLUX: 4096). Qwen-Image: max_seq_len 8192,
    max_shift 0.9.
    """
    slope = (max_shift - base_shift) / (max_seq_len - base_seq_len)
    return base_shift + slope * (image_seq_len - base_seq_len)


def shift_time(t: Tensor, shift: float) -> Tensor:
    """Levels shift t / (1 + (shift - 1) t): more steps near noise for shift > 1 (SD3, arXiv 2403.03206)."""
    return shift * t / (1 + (shift - 1) * t)


def shift_time_exponential(t: Tensor, mu: float) -> Tensor:
    """Levels e^mu / (e^mu + 1/t - 1), shaped like t in (0, 1] of any shape: `shift_time` with shift = e^mu."""
    return math.exp(mu) / (math.exp(mu) + (1 / t - 1))


def karras(levels: Tensor, rho: float = 7.0) -> Tensor:
    """As many levels as the table [num_steps + 1], from its first to its last above 0 evenly in s^(1 / rho), then 0.

    The spacing of EDM (arXiv 2206.00364, eq. 5) applied to the levels of a flow as they are, the way diffusers'
    use_karras_sigmas does it: rho 1 is even spacing, larger ones put more steps near the data.
    """
    if levels.numel() == 2:
        return levels.float()
    high, low = levels[0].double() ** (1 / rho), levels[-2].double() ** (1 / rho)
    ramp = torch.linspace(0, 1, levels.numel() - 1, dtype=torch.float64, device=levels.device)
    inner = (high + ramp * (low - high)) ** rho
    return torch.cat([levels[:1].float(), inner[1:].float(), levels.new_zeros(1).float()])


def merge_steps(levels: Tensor, begin: int, count: int) -> Tensor:
    """The table [num_steps + 2 - count] whose step `begin` covers steps begin to begin + count - 1 at once (E-GRPO)."""
    return torch.cat([levels[: begin + 1], levels[begin + count :]])


def coarse(levels: Tensor, after: int, every: int) -> Tensor:
    """The table that takes, after level number `after`, every `every`-th level alone and always ends in 0 (G2RPO).

    The published tail of stochastic step k, sigma[: k + 2] then sigma[k + 2 :: every], is after = k + 2, but for the 0
    that it leaves out where `every` does not divide the remaining steps.
    """
    rest = levels[after + every :: every]
    missing = levels[-1:] if (levels.numel() - 1 - after) % every else levels[:0]
    return torch.cat([levels[: after + 1], rest, missing])


def compress_tail(levels: Tensor, after: int, steps: int) -> Tensor:
    """The table [after + steps + 1] that continues from level number `after` to 0 in `steps` steps (MixGRPO-Flash).

    They are equally spaced in un-shifted time u = 1 - i / N, where levels[i] is the level of u_i. Between its points
    logit(s) is linear in logit(u), beyond the outermost two of slope 1: exact for any table of `shifted` or
    `exponential`, where logit(s) - logit(u) is the log of the shift, and falling for every other.
    """
    num_steps = levels.numel() - 1
    u = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64, device=levels.device)
    wanted = (u[after] * (1 - torch.arange(1, steps, device=levels.device) / steps)).logit()
    if num_steps < 2:
        tail = wanted.sigmoid()
    else:
        knots, values = u[1:-1].logit().flip(0), levels[1:-1].double().logit().flip(0)
        tail = _interpolated(wanted, knots, values).sigmoid()
    return torch.cat([levels[: after + 1], tail.to(levels), levels[-1:]])


def flash_steps(num_steps: int, after: int, ratio: float) -> int:
    """How many steps MixGRPO-Flash puts after level number `after` of a table of num_steps, at least one.

    Published: int(max((num_steps - last) * ratio, 1)) points with the first, last = after - 1 being the last step of
    the window. One point makes no step, and the published sampler then decodes a latent that still holds noise.
    """
    return max(int((num_steps - after + 1) * ratio) - 1, 1)


def timesteps(sigmas: Tensor, *, num_train_timesteps: int = 1000, truncate: bool = False) -> Tensor:
    """The time arguments [num_steps] fed to the network: levels times num_train_timesteps, without the final 0.

    truncate: drop the fraction, as DanceGRPO and MixGRPO do. Rollout and training must agree on this choice.
    """
    times = sigmas[:-1] * num_train_timesteps
    return times.trunc() if truncate else times


def _grid(num_steps: int, lowest: float, num_levels: int, dtype: torch.dtype = torch.float64) -> Tensor:
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} leaves no step: give 1 or more")
    return torch.linspace(1.0, lowest, num_levels, dtype=dtype)


def _closed(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels.new_zeros(1)]).float()


def _interpolated(at: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear through (knots, values), knots rising; slope 1 outside of them."""
    inside = at.clamp(knots[0], knots[-1])
    if knots.numel() == 1:
        return values + at - inside
    right = torch.searchsorted(knots, inside).clamp(1, knots.numel() - 1)
    left = right - 1
    share = (inside - knots[left]) / (knots[right] - knots[left])
    return values[left] + share * (values[right] - values[left]) + at - inside
