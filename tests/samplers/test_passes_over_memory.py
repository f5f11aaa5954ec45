"""How often a replayed step passes over memory: bytes read and written, counted operation by operation."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from samplers.gaussian import Gaussian
from samplers.transitions import dance_sde, flow_sde, ve_sde, wan_sde

ROWS, WIDTH = 3, 2000
MOST = 2.8  # times the floor: state, velocity and draw read forward and backward, the velocity's gradient written


class Traffic(TorchDispatchMode):
    """Counts the elements that operations read and write, those of latents' size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and not str(func).startswith(("aten.detach", "aten.new_", "aten.empty")):
            leaves = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            held = [min(leaf.numel(), leaf.untyped_storage().nbytes() // leaf.element_size()) for leaf in leaves]
            self.elements += sum(n for n in held if n >= ROWS * WIDTH)
        return out


def plain(gaussian: Gaussian, x: Tensor) -> Tensor:
    """The log-prob by torch's operations one by one."""
    square = (x - gaussian.mean).square().flatten(1).sum(1) * (1 / gaussian.std.square())
    constant = gaussian.std.log() * WIDTH + 0.5 * float(torch.log(torch.tensor(2 * torch.pi))) * WIDTH
    return (-0.5 * square - constant) / WIDTH


@pytest.mark.parametrize("step", [flow_sde, wan_sde, dance_sde, ve_sde])
def test_a_replayed_step_passes_over_latents_few_times(step: Any) -> None:
    x, drawn, grads, passes = torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH), [], []
    velocity = torch.randn(ROWS, WIDTH)
    for score in (Gaussian.log_prob, plain):
        v = velocity.clone().requires_grad_()
        with Traffic() as traffic:
            logp = score(step(x, v, 0.8, 0.6, noise=0.7, s_cap=0.9), drawn)
            (logp * torch.tensor([0.3, -1.7, 0.9])).sum().backward()
        grads.append(v.grad)
        passes.append(traffic.elements / (7 * ROWS * WIDTH))
    assert passes[0] <= MOST < passes[1]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("std_shape", [(), (3, 1, 1), (3, 4, 1)])
def test_squares_have_the_gradient_of_single_operations_to_the_last_bit(std_shape: tuple[int, ...]) -> None:
    mean, other = (torch.randn(3, 4, 50).requires_grad_() for _ in range(2))
    std = (torch.randn(std_shape).abs() + 0.1).requires_grad_()
    slope = torch.tensor([0.3, -1.7, 0.9])
    kl = Gaussian(mean, std).kl_sums(Gaussian(other, std))[0]
    ours = torch.autograd.grad((kl * slope).sum(), (mean, other))
    delta = mean - other
    squares = (delta / std).square().flatten(1).sum(1) if std_shape == (3, 4, 1) else None
    if squares is None:
        squares = delta.square().flatten(1).sum(1) * (1 / std.square()).reshape(-1)
    theirs = torch.autograd.grad((0.5 * squares * slope).sum(), (mean, other))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_mean_that_all_rows_share_has_the_gradient_of_all() -> None:
    mean, x, std = torch.randn(1, 5).requires_grad_(), torch.randn(3, 5), torch.tensor(0.5)
    distance = Gaussian(mean.expand(3, 5), std).log_prob(x, "sum")
    (grad,) = torch.autograd.grad(distance.sum(), mean)
    torch.testing.assert_close(grad, ((x - mean) / std**2).sum(0, keepdim=True))
