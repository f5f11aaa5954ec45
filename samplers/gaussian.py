"""The distribution of the next latent: drawing from it, scoring under it, comparing two of them.

Elements whose std is 0 are deterministic. They have no density, so they are left out of log-probabilities and
divergences and of the number of elements these are averaged over.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """A diagonal Gaussian per row. mean: [R, ...] float32; std: float32, broadcastable to mean, 0 = deterministic."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """The draw mean + std * noise, [R, ...] like mean. noise: standard normal, shaped like mean."""
        return self.mean + self.std * noise

    def log_prob(
        self, x: Tensor, reduce: str = "mean", keep: Tensor | None = None, *, unit_variance: bool = False
    ) -> Tensor:
        """Log-density of x, one number a row: [R]. x is detached; the gradient reaches mean and std.

        reduce: "mean" over the counted elements, or "sum". keep: bool, broadcastable to mean; False drops an element.
        A row without a counted element gives 0 with zero gradient. unit_variance: see `log_prob_sums`.
        """
        return reduce_sums(*self.log_prob_sums(x, keep, unit_variance=unit_variance), reduce)

    def kl(self, other: "Gaussian", reduce: str = "mean", keep: Tensor | None = None) -> Tensor:
        """Exact KL(self || other), one number a row: [R]. Arguments and empty rows as in `log_prob`."""
        return reduce_sums(*self.kl_sums(other, keep), reduce)

    def scaled(self, factor: float | Tensor) -> "Gaussian":
        """The Gaussian of the same mean [R, ...] with `factor` times the std. factor: >= 0, broadcastable to mean."""
        return Gaussian(self.mean, self.std * factor)

    def log_prob_sums(
        self, x: Tensor, keep: Tensor | None = None, *, unit_variance: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(sum of log-densities [R], number of counted elements [R]), to be added up over several latent streams.

        unit_variance: the bare -(x - mean)^2 instead, std and constants left out, as Flow-CPS scores its steps. It is
        2 std^2 times the quadratic of the density, so that its log-ratios, and its clip range, are smaller by that.
        """
        counted, safe = self._counted(self.std > 0, keep)
        if unit_variance:
            square = _sum_of_squares(x.detach(), self.mean, torch.ones_like(safe), counted)
            return -square, self._row_sum(counted)
        quadratic = _sum_of_squares(x.detach(), self.mean, safe, counted)
        count = self._row_sum(counted)
        return -0.5 * quadratic - self._row_sum(safe.log()) - HALF_LOG_TWO_PI * count, count

    def kl_sums(self, other: "Gaussian", keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(sum of KL(self || other) [R], number of counted elements [R]). Counted: both stds positive and kept.

        KL = (r^2 - 1) / 2 - log r + (mean - other.mean)^2 / (2 other.std^2) with r = std / other.std, which is exactly
        the last term, without rounding, where both policies share their std.
        """
        counted, safe_other = other._counted((self.std > 0) & (other.std > 0), keep)
        ratio = torch.where(counted, self.std, 1) / safe_other
        quadratic = _sum_of_squares(self.mean, other.mean, safe_other, counted)
        spread = 0.5 * (ratio.square() - 1) - ratio.log()
        return 0.5 * quadratic + self._row_sum(spread), self._row_sum(counted)

    def centred_sums(self, old: Tensor, x: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(sum of (mean - old) (x - old) / std^2 [R], number of counted elements [R]).

        With x drawn from the mean `old` and this std, it is the log-ratio to the policy that drew less its expectation,
        exactly 0 at that policy. Both are taken apart before they are subtracted: no large numbers cancel.
        """
        counted, safe = self._counted(self.std > 0, keep)
        # Masked before the product: what is dropped may be inf or nan, and nan * 0 would be nan in backward.
        moved, drawn = ((value - old).masked_fill(~counted, 0) for value in (self.mean, x.detach()))
        return _sum_rows(moved * drawn / safe.square()), self._row_sum(counted)

    def rows(self, index: Tensor) -> "Gaussian":
        """The Gaussian of rows index ([N] int64, repeats allowed): a parent fanned out into its children."""
        per_row = self.std.dim() == self.mean.dim() and self.std.shape[0] == self.mean.shape[0]
        std = self.std.index_select(0, index) if per_row else self.std
        return Gaussian(self.mean.index_select(0, index), std)

    def _counted(self, positive: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        # Stays in the (usually tiny) broadcast shape of std and keep. Decided on the device: asking "is any std 0?"
        # from Python would make every step wait for the GPU. std becomes 1 where nothing counts: no 0/0 in backward.
        counted = positive if keep is None else positive & keep
        if counted.dim():  # one number for all rows stays one
            counted = counted.reshape((1,) * (self.mean.dim() - counted.dim()) + counted.shape)
        return counted, torch.where(counted, self.std, 1)

    def _row_sum(self, part: Tensor) -> Tensor:
        # Sum over the elements of each row of a tensor broadcastable to mean, without expanding it.
        repeats = math.prod(self.mean.shape[1:]) // max(math.prod(part.shape[1:]), 1)
        return (_sum_rows(part) * repeats).to(self.mean.dtype).expand(self.mean.shape[0])


def reduce_sums(total: Tensor, count: Tensor, reduce: str) -> Tensor:
    """The sum, or the mean over counted elements: [R]. A row with count 0 gives its total, which is 0."""
    if reduce == "sum":
        return total
    if reduce == "mean":
        return total / count.clamp(min=1)
    raise ValueError(f"reduce={reduce!r} is not known: give 'mean' or 'sum'")


def pool_streams(sums: Sequence[tuple[Tensor, Tensor]], reduce: str) -> Tensor:
    """One value a row [R] for several streams (video and audio) given as (sum, count) pairs: elements weigh alike."""
    totals, counts = zip(*sums, strict=True)
    return reduce_sums(torch.stack(totals).sum(0), torch.stack(counts).sum(0), reduce)


def _sum_rows(part: Tensor) -> Tensor:
    # An empty tuple of dimensions would mean "all of them" to torch.
    return part.sum(tuple(range(1, part.dim()))) if part.dim() > 1 else part


def _sum_of_squares(x: Tensor, mean: Tensor, safe: Tensor, counted: Tensor) -> Tensor:
    """Row sums [R] of ((x - mean) / safe)^2 over counted elements. x, mean: [R, ...]; safe, counted: broadcastable."""
    if math.prod(counted.shape[1:]) == 1:  # one std a row: scale the sum, not the elements
        weight = (counted / safe.square()).reshape(-1)
        if not torch.is_grad_enabled():
            return _sum_rows((x - mean).square()) * weight
        distance: Tensor = _SquaredDistance.apply(x, mean)  # pyright: ignore[reportAssignmentType]
        return distance * weight
    # Masked before the square: what is dropped may be inf or nan, and nan * 0 would be nan in backward.
    return _sum_rows(((x - mean).masked_fill(~counted, 0) / safe).square())


class _SquaredDistance(torch.autograd.Function):
    """Row sums [R] of (a - b)^2, whose gradient passes over latents once: 2 g (a - b), where that of the operations one
    by one passes four times. Both are rounded once, so that they are equal to the last bit."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        delta = a - b
        ctx.save_for_backward(delta)
        ctx.shapes = a.shape, b.shape
        return _sum_rows(delta.square())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (delta,) = ctx.saved_tensors
        slope = (2 * grad).reshape(-1, *(1,) * (delta.dim() - 1))
        signs = (slope if ctx.needs_input_grad[0] else None, -slope if ctx.needs_input_grad[1] else None)
        a, b = (None if of is None else (delta * of).sum_to_size(s) for of, s in zip(signs, ctx.shapes, strict=True))
        return a, b
