"""Learning from the gradient of a reward: what a differentiable reward says of a picture moves the weights directly.

An ODE walk x_{k+1} = x_k + (s_{k+1} - s_k) v(x_k) carries a gradient from its end to every velocity: it is
(s_{k+1} - s_k) times the gradient of the reward at x_{k+1}. Once that is known, a step's share of the gradient needs
the graph of that step alone, so that a walk of any length is differentiated with the memory of one step.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def hinge(reward: Tensor, threshold: float) -> Tensor:
    """max(threshold - reward, 0), in the shape of reward: what is good enough gives no gradient.

    ReFL (ImageReward, arXiv:2304.05977: threshold 2, times 1e-3) and SRPO (threshold 0.7, halved).
    """
    return (threshold - reward).relu()


def relative_reward(wanted: Tensor, other: Tensor, discount: float) -> Tensor:
    """(1 + discount) wanted - other: how much better a picture fits one text than another, in the shape of both.

    wanted, other: rewards of the same pictures with the control words of two texts put before the prompt. Source: SRPO
    (arXiv:2509.06942, its code), where `wanted` is the positive text when noise is taken away and the negative one when
    it is put in.
    """
    return (1 + discount) * wanted - other


def backward_through(
    states: Sequence[Tensor],
    levels: Sequence[float],
    pull: Tensor,
    velocity: Callable[[int, Tensor], Tensor],
    *,
    nested: bool = True,
) -> Tensor:
    """Adds to all parameters the gradient of a loss through the last K steps of an ODE walk; returns it at the first.

    states: K tensors [r, ...], where the steps began; levels: their K levels and that of the end; pull [r, ...]: the
    gradient of the loss at the end of the walk; velocity(k, x) [r, ...], with gradient, at the k-th of these states.
    nested: whether the gradient also takes the way through later states, which gives that of the whole walk: DRaFT-K
    (arXiv:2309.17400) and AlignProp (arXiv:2310.03739). Without it every velocity is pulled by the gradient at
    the end alone, as in DRTune (arXiv:2405.00760).
    Raises ValueError where levels are not one more than states.
    """
    if len(levels) != len(states) + 1:
        raise ValueError(f"{len(states)} states and {len(levels)} levels: give the level of each and that of the end")
    for k in reversed(range(len(states))):
        x = states[k].detach().requires_grad_(nested)
        with torch.enable_grad():
            (velocity(k, x) * (pull * (levels[k + 1] - levels[k]))).sum().backward()
        if x.grad is not None:
            pull = pull + x.grad
    return pull
