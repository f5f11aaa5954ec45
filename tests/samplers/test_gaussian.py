"""Gaussian against torch.distributions, and the bookkeeping of elements that do not count."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from samplers.gaussian import Gaussian, pool_streams

SHAPE = (3, 4, 5)
STD_SHAPES = [(), (3, 1, 1), (1, 1, 1), (3, 4, 1), (4, 1), (1, 4, 5), (3, 4, 5)]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gaussian(std_shape: tuple[int, ...], seed: int = 0) -> Gaussian:
    return Gaussian(draw(seed, *SHAPE), draw(seed + 100, *std_shape).abs() + 0.1)


def normal(g: Gaussian) -> Normal:
    return Normal(g.mean, g.std.expand_as(g.mean))


@pytest.mark.parametrize("std_shape", STD_SHAPES)
def test_log_prob_is_that_of_torch(std_shape: tuple[int, ...]) -> None:
    g, x = gaussian(std_shape), draw(1, *SHAPE)
    want = normal(g).log_prob(x).flatten(1)
    torch.testing.assert_close(g.log_prob(x), want.mean(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(g.log_prob(x, reduce="sum"), want.sum(1), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("std_shape", STD_SHAPES)
@pytest.mark.parametrize("other_shape", [(), (3, 1, 1), (3, 4, 5)])
def test_kl_is_that_of_torch(std_shape: tuple[int, ...], other_shape: tuple[int, ...]) -> None:
    p, q = gaussian(std_shape), gaussian(other_shape, seed=7)
    want = kl_divergence(normal(p), normal(q)).flatten(1)
    torch.testing.assert_close(p.kl(q), want.mean(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(p.kl(q, reduce="sum"), want.sum(1), atol=1e-4, rtol=1e-4)


def test_kl_to_itself_is_exactly_zero() -> None:
    g = gaussian((3, 4, 1))
    assert torch.equal(g.kl(g), torch.zeros(3))


@pytest.mark.parametrize("std_shape", STD_SHAPES)
def test_gradients_are_those_of_torch(std_shape: tuple[int, ...]) -> None:
    g, x = gaussian(std_shape), draw(1, *SHAPE)
    mean, std = g.mean.clone().requires_grad_(), g.std.clone().requires_grad_()
    got = torch.autograd.grad(Gaussian(mean, std).log_prob(x, "sum").sum(), (mean, std))
    want = torch.autograd.grad(Normal(mean, std.expand_as(mean)).log_prob(x).sum(), (mean, std))
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-4)


def test_x_receives_no_gradient() -> None:
    g, x = gaussian(()), draw(1, *SHAPE).requires_grad_()
    assert not g.log_prob(x).requires_grad


def test_sample_is_affine_in_the_noise_and_scores_as_the_noise() -> None:
    g, noise = gaussian((3, 1, 1)), draw(2, *SHAPE)
    x = g.sample(noise)
    torch.testing.assert_close((x - g.mean) / g.std, noise, atol=1e-4, rtol=1e-4)
    want = Normal(0.0, 1.0).log_prob(noise).flatten(1).mean(1) - g.std.log().flatten()
    torch.testing.assert_close(g.log_prob(x), want, atol=1e-4, rtol=1e-4)


def test_deterministic_elements_are_sampled_as_their_mean() -> None:
    g = Gaussian(draw(0, *SHAPE), torch.tensor([0.0, 1.0, 0.0]).reshape(3, 1, 1))
    drawn = g.sample(draw(2, *SHAPE)) == g.mean
    assert drawn[0].all() and drawn[2].all() and not drawn[1].any()


@pytest.mark.parametrize("std_shape", STD_SHAPES)
@pytest.mark.parametrize("keep_shape", [(4, 1), (1, 1, 5), (3, 4, 1)])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_keep_equals_dropping_the_elements(std_shape: tuple, keep_shape: tuple, reduce: str) -> None:
    p, q, x = gaussian(std_shape), gaussian(std_shape, seed=7), draw(1, *SHAPE)
    keep = draw(5, *keep_shape) > -0.3
    kept = keep.expand(SHAPE)
    for got, want in (
        (p.log_prob(x, reduce, keep), normal(p).log_prob(x)),
        (p.kl(q, reduce, keep), kl_divergence(normal(p), normal(q))),
    ):
        rows = [getattr(row[mask], reduce)() for row, mask in zip(want, kept, strict=True)]
        torch.testing.assert_close(got, torch.stack(rows), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_std_zero_counts_as_not_kept(reduce: str) -> None:
    g, x = gaussian((3, 4, 1)), draw(1, *SHAPE)
    keep = draw(5, 3, 4, 1) > 0
    frozen = Gaussian(g.mean, g.std * keep)
    torch.testing.assert_close(frozen.log_prob(x, reduce), g.log_prob(x, reduce, keep))
    torch.testing.assert_close(frozen.kl(gaussian((), 7), reduce), g.kl(gaussian((), 7), reduce, keep))
    torch.testing.assert_close(gaussian((), 7).kl(frozen, reduce), gaussian((), 7).kl(g, reduce, keep))


@pytest.mark.parametrize("std_shape", [(), (3, 1, 1), (3, 4, 1)])
def test_a_row_without_counted_elements_is_zero_with_zero_gradient(std_shape: tuple[int, ...]) -> None:
    mean = draw(0, *SHAPE).requires_grad_()
    g, x = Gaussian(mean, torch.zeros(std_shape)), draw(1, *SHAPE)
    for value in (g.log_prob(x), g.log_prob(x, "sum"), g.kl(gaussian(())), gaussian(()).kl(g)):
        assert torch.equal(value, torch.zeros(3))
        assert torch.equal(torch.autograd.grad(value.sum(), mean)[0], torch.zeros(SHAPE))


def test_only_the_row_that_keeps_nothing_is_zero() -> None:
    g, x = gaussian((3, 1, 1)), draw(1, *SHAPE)
    keep = torch.tensor([True, False, True]).reshape(3, 1, 1)
    assert torch.equal(g.log_prob(x, keep=keep), g.log_prob(x) * keep.flatten())


def test_dropped_elements_may_hold_nan() -> None:
    mean, x = draw(0, *SHAPE).requires_grad_(), draw(1, *SHAPE)
    keep = draw(5, *SHAPE) > 0
    value = Gaussian(mean, torch.tensor(0.7)).log_prob(x.masked_fill(~keep, torch.nan), keep=keep)
    (grad,) = torch.autograd.grad(value.sum(), mean)
    assert value.isfinite().all() and grad.isfinite().all()
    assert torch.equal(grad != 0, keep)


def test_streams_pool_like_one_long_row() -> None:
    video, audio = gaussian((3, 1, 1)), Gaussian(draw(3, 3, 7), torch.tensor(0.4))
    x_video, x_audio = draw(1, *SHAPE), draw(2, 3, 7)
    keep = draw(5, 3, 7) > 0
    joined = Gaussian(
        torch.cat([video.mean.flatten(1), audio.mean], 1),
        torch.cat([video.std.expand(SHAPE).flatten(1), audio.std.expand(3, 7)], 1),
    )
    x = torch.cat([x_video.flatten(1), x_audio], 1)
    kept = torch.cat([torch.ones(3, 20, dtype=torch.bool), keep], 1)
    for reduce in ("mean", "sum"):
        got = pool_streams([video.log_prob_sums(x_video), audio.log_prob_sums(x_audio, keep)], reduce)
        torch.testing.assert_close(got, joined.log_prob(x, reduce, kept), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("std_shape", STD_SHAPES)
def test_rows_commute_with_scoring(std_shape: tuple[int, ...]) -> None:
    g, x, index = gaussian(std_shape), draw(1, *SHAPE), torch.tensor([2, 0, 0, 1, 2])
    children = g.rows(index)
    assert torch.equal(children.log_prob(x[index]), g.log_prob(x)[index])
    assert torch.equal(children.sample(x[index]), g.sample(x)[index])


def test_permuting_rows_permutes_the_values() -> None:
    g, x, order = gaussian((3, 4, 1)), draw(1, *SHAPE), torch.tensor([1, 2, 0])
    assert torch.equal(g.rows(order).rows(order.argsort()).log_prob(x), g.log_prob(x))


@pytest.mark.parametrize("std_shape", STD_SHAPES)
def test_scaled_changes_the_spread_alone(std_shape: tuple[int, ...]) -> None:
    g, noise = gaussian(std_shape), draw(2, *SHAPE)
    wide = g.scaled(4.0)
    torch.testing.assert_close(wide.sample(noise) - g.mean, 4 * (g.sample(noise) - g.mean), atol=1e-5, rtol=1e-5)
    want = Normal(g.mean, 4 * g.std.expand(SHAPE)).log_prob(noise).flatten(1).mean(1)
    torch.testing.assert_close(wide.log_prob(noise), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_the_bare_square_is_the_density_without_its_scale(reduce: str) -> None:
    # differences of two policies: log-densities are 1 / (2 std^2) times those of the square
    p, x, std = gaussian((3, 1, 1)), draw(1, *SHAPE), gaussian((3, 1, 1)).std
    q, keep = Gaussian(draw(9, *SHAPE), std), draw(5, 4, 1) > 0
    square, density = (
        p.log_prob(x, reduce, keep, unit_variance=flag) - q.log_prob(x, reduce, keep, unit_variance=flag)
        for flag in (True, False)
    )
    torch.testing.assert_close(square, 2 * std.flatten() ** 2 * density, atol=1e-4, rtol=1e-4)
    assert torch.equal(Gaussian(p.mean, torch.zeros(3, 1, 1)).log_prob(x, unit_variance=True), torch.zeros(3))


def test_one_dimensional_rows() -> None:
    g, x = Gaussian(draw(0, 6), torch.tensor(0.5)), draw(1, 6)
    torch.testing.assert_close(g.log_prob(x), Normal(g.mean, 0.5).log_prob(x))


def test_narrow_x_is_scored_in_float32() -> None:
    g, x = gaussian((3, 1, 1)), draw(1, *SHAPE).bfloat16()
    got = g.log_prob(x)
    assert got.dtype == torch.float32
    assert torch.equal(got, g.log_prob(x.float()))


def test_an_unknown_reduction_is_named() -> None:
    with pytest.raises(ValueError, match="reduce='median'.*'mean' or 'sum'"):
        gaussian(()).log_prob(draw(1, *SHAPE), reduce="median")
