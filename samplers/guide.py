"""A reward that steers a walk while it runs: nothing is trained."""

from torch import Tensor

from samplers.levels import Level, quotient


def guided_velocity(
    v: Tensor, gradient: Tensor, s: Level, *, weight: float, signal: Level | None = None, unit: float = 1.0
) -> Tensor:
    """v - weight s / (1 - s) gradient: the velocity of samples whose density is tilted by exp(weight * reward).

    v [R, ...] at the level s < 1 of the path x = (1 - s) x_0 + s eps; gradient [R, ...]: of the reward of the noisy
    latent at x. The score of that path is -(x + (1 - s) v) / s, so that a change of it by `weight * gradient` changes v
    by -s / (1 - s) of that. Source: Flow-NRG (VideoAlign, arXiv:2501.13918).
    On another path x = signal x_0 + s eps, with v = eps - x_0 or eps alone, the factor is s unit / signal, where
    (x - s v) / unit is the estimate of x_0: then eps = (x + signal v) / unit, and the score is -eps / s.
    Raises ValueError for s = 1, where the factor has no bound: begin at the second step.
    """
    signal = 1 - s if signal is None else signal
    if not isinstance(signal, Tensor) and signal <= 0:
        raise ValueError(f"s={s}: guidance divides by 1 - s, so give a level below 1 (begin at the second step)")
    return v - gradient * quotient(weight * s * unit, signal)
