"""Estimators against the divergence they estimate, near and far from equality, and the coefficient's schedules."""

import math

import pytest
import torch

from flowrl.core.objectives.divergence import GIVEN, KINDS, adaptive_coefficient, k3, linear_coefficient, penalty

ESTIMATORS = [kind for kind in KINDS if kind not in GIVEN]


def test_k3_is_never_negative_and_zero_only_at_equality() -> None:
    """float32 log-probs around -1.4 that differ by a few rounding steps up to 3."""
    size = torch.logspace(-7, 0.5, 2000)
    logp = torch.full((4000,), -1.4)
    ref = logp + torch.cat([size, -size])
    differs = ref != logp
    kl = penalty("k3", logp, ref)
    assert (kl[differs] > 0).all()
    assert torch.equal(penalty("k3", logp, logp), torch.zeros(4000))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_k3_and_its_gradient_are_exact_at_every_size(dtype: torch.dtype) -> None:
    for size in (1e-8, 1e-6, 1e-4, 0.0099, 0.0101, 0.5, 3.0):
        for sign in (-1, 1):
            x = torch.tensor(sign * size, dtype=dtype, requires_grad=True)
            (grad,) = torch.autograd.grad(k3(x), x)
            value = x.item()
            # Where the closed form cancels in float64 too, three terms of the series are exact to 1e-12.
            series = value**2 / 2 * (1 + value / 3 + value**2 / 12)
            want = series if size < 1e-3 else math.expm1(value) - value
            assert float(k3(x.detach())) == pytest.approx(want, rel=2e-5)
            assert float(grad) == pytest.approx(math.expm1(value), rel=2e-5)


def test_k3_stays_finite_far_away() -> None:
    x = torch.tensor([-1e25, -50.0, 50.0], requires_grad=True)
    (grad,) = torch.autograd.grad(k3(x).sum(), x)
    assert torch.isfinite(grad).all()


def test_gradients_in_the_log_probability() -> None:
    logp = torch.tensor([[-1.0, -2.0, -0.5]], requires_grad=True)
    ref = torch.tensor([[-1.3, -1.5, -0.4]], requires_grad=True)
    x = (ref - logp).detach()
    wanted = {"k1": torch.ones_like(x), "abs": -x.sign(), "k2": -x, "k3": 1 - x.exp()}
    for kind, want in wanted.items():
        (grad, none) = torch.autograd.grad(penalty(kind, logp, ref).sum(), (logp, ref), allow_unused=True)
        torch.testing.assert_close(grad, want, rtol=1e-5, atol=1e-6)
        assert none is None


def test_estimators_average_to_the_divergence() -> None:
    """Categorical policies, expectation taken exactly: k1 and k3 are unbiased, k2's gradient is that of the KL."""
    logits = torch.tensor([0.3, -0.4, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    logp, ref = logits.log_softmax(0), torch.tensor([-0.2, 0.5, 0.1, 0.6], dtype=torch.float64).log_softmax(0)
    p = logp.exp().detach()
    kl = (logp.exp() * (logp - ref)).sum()
    (true_grad,) = torch.autograd.grad(kl, logits, retain_graph=True)
    for kind in ("k1", "k3"):
        torch.testing.assert_close((p * penalty(kind, logp, ref)).sum(), kl)
    for kind, straight_through in (("k2", False), ("k1", True), ("k3", True)):
        term = (p * penalty(kind, logp, ref, straight_through=straight_through)).sum()
        (grad,) = torch.autograd.grad(term, logits, retain_graph=True)
        torch.testing.assert_close(grad, true_grad)


def test_old_decisions_are_corrected() -> None:
    """Decisions of an older policy, weighted by exp(logp - rollout_logp), average to the current one's divergence."""
    logits = torch.tensor([0.3, -0.4, 0.8], dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(0)
    ref = torch.tensor([-0.2, 0.5, 0.1], dtype=torch.float64).log_softmax(0)
    rollout_logp = torch.tensor([1.0, 0.2, -0.3], dtype=torch.float64).log_softmax(0)
    kl = (logp.exp() * (logp - ref)).sum()
    term = (rollout_logp.exp() * penalty("k3", logp, ref, rollout_logp=rollout_logp)).sum()
    torch.testing.assert_close(term, kl)
    grads = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (term, kl)]
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_leak(kind: str) -> None:
    mask = torch.tensor([[True, True, False]])
    logp = torch.tensor([[-1.0, -2.0, math.nan]], requires_grad=True)
    ref, kl = torch.tensor([[-1.1, -1.8, math.inf]]), logp.square()
    term = penalty(
        kind, logp, ref, kl=kl, dt=torch.tensor([[-0.1, -0.2, math.nan]]), rollout_logp=logp.detach(), mask=mask
    )
    assert term[0, 2] == 0
    if kind not in GIVEN:  # a kl that is NaN at padding has a NaN gradient of its own
        (grad,) = torch.autograd.grad(term.sum(), logp)
        assert torch.isfinite(grad).all() and grad[0, 2] == 0


def test_limits_stop_value_and_gradient() -> None:
    logp = torch.tensor([-30.0, -4.0, -1.0], requires_grad=True)
    ref = torch.zeros(3)
    term = penalty("k3", logp, ref, log_ratio_limit=20.0, value_limit=10.0)
    (grad,) = torch.autograd.grad(term.sum(), logp)
    torch.testing.assert_close(term, torch.tensor([10.0, 10.0, math.e - 2]))
    assert grad[:2].tolist() == [0.0, 0.0] and grad[2] != 0
    term = penalty("k3", logp, ref, log_ratio_limit=20.0)
    (grad,) = torch.autograd.grad(term.sum(), logp)
    torch.testing.assert_close(term[0], torch.tensor(math.exp(20) - 21))
    assert grad[0] == 0 and grad[1] != 0


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_dtypes(kind: str) -> None:
    for given, got in ((torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2):
        assert penalty(kind, torch.zeros(1, 2, dtype=given), torch.ones(1, 2, dtype=given)).dtype == got


def test_exact_passes_what_the_sampler_computed() -> None:
    kl = torch.tensor([[0.1, 0.4]], requires_grad=True)
    assert torch.equal(penalty("exact", kl=kl, mask=torch.tensor([[1, 0]])), torch.tensor([[0.1, 0.0]]))


def test_exact_dt_is_the_exact_one_per_unit_of_diffusion() -> None:
    """Of a step of variance g^2 |dt|: (difference of means)^2 / (2 g^2)."""
    g, dt, difference = 0.7, -0.09, torch.tensor([[0.02, -0.05]], requires_grad=True)
    kl = difference.square() / (2 * g**2 * -dt)
    term = penalty("exact_dt", kl=kl, dt=torch.full((1, 2), dt))
    torch.testing.assert_close(term, difference.square() / (2 * g**2))
    (grad,) = torch.autograd.grad(term.sum(), difference)
    torch.testing.assert_close(grad, difference.detach() / g**2)
    with pytest.raises(ValueError, match="needs dt"):
        penalty("exact_dt", kl=kl)


def test_the_adaptive_coefficient_moves_towards_its_target() -> None:
    step = dict(target=0.1, horizon=1000.0, num_samples=500)
    assert adaptive_coefficient(1.0, 0.1, **step) == 1.0
    assert adaptive_coefficient(1.0, 0.11, **step) == pytest.approx(1.05)
    assert adaptive_coefficient(1.0, 9.0, **step) == pytest.approx(1.1)
    assert adaptive_coefficient(1.0, 0.0, **step) == pytest.approx(0.9)


def test_the_linear_coefficient_ends_at_its_end() -> None:
    assert [linear_coefficient(u, start=2.0, end=1.0, total=4) for u in (0, 1, 4, 9)] == [2.0, 1.75, 1.0, 1.0]


def test_errors() -> None:
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="choose one of k1"):
        penalty("kl", x, x)
    with pytest.raises(ValueError, match="needs logp and ref_logp"):
        penalty("k3", x)
    with pytest.raises(ValueError, match="needs kl"):
        penalty("exact", x, x)
    with pytest.raises(ValueError, match="rollout_logp is given without logp"):
        penalty("exact", kl=x, rollout_logp=x)
