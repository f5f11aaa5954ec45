"""A loss that reads whole rows has the same gradient whether the policy hands rows over at once or in pieces."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from flowrl.contracts import LogProbs, Policy, Rollout, Samples, View
from flowrl.core.backward import StepLoss, backward
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.grpo import ClippedObjective

ROWS, K = 6, 5
SEQUENCE = ClippedObjective(0.03, 0.035, level="seq_mean", aggregate="seq_mean_mean")
MASK = torch.arange(K) < torch.tensor([5, 3, 1, 0, 4, 5])[:, None]
ADV = torch.tensor([1.0, -2.0, 0.5, 1.0, -1.0, 2.0])


class Sigmoids:
    """Decisions of probability sigmoid(f . theta); a row is handed over in blocks of `width` columns, last first."""

    def __init__(self, width: int = K, drift: float = 0.1):
        generator = torch.Generator().manual_seed(0)
        self.features = torch.randn(ROWS, K, 3, generator=generator, dtype=torch.float64)
        start = torch.randn(3, generator=generator, dtype=torch.float64)
        self.theta = nn.Parameter(start + drift * torch.randn(3, generator=generator, dtype=torch.float64))
        self.width, self.whole_rows = width, width == K
        self.visits: list[tuple[int, bool]] = []  # columns, and whether there was a graph
        rollout_logp = nn.functional.logsigmoid(self.features @ start)
        self.rollout_logp = torch.where(MASK, rollout_logp, torch.nan)
        self.reference_logp = rollout_logp + 0.3

    def of(self, rows: Tensor, columns: Tensor, exact_kl: bool) -> LogProbs:
        logit = self.features[rows][:, columns] @ self.theta
        kl = (logit.tanh() - 0.2).square() if exact_kl else None
        logp = nn.functional.logsigmoid(logit).where(MASK[rows][:, columns], torch.nan)  # padding may hold anything
        return LogProbs(rows, columns, logp, kl)

    def look(self, rollout: Rollout, rows: Tensor, view: View, visit: Callable, **_: object) -> None:
        for columns in reversed(torch.arange(K).split(self.width)):
            for part in rows.flip(0).split(4):
                score = self.of(part, columns, view.exact_kl)
                self.visits.append((len(columns), score.logp.requires_grad))
                visit(score)

    def rollout(self) -> Rollout:
        samples = Samples([], torch.arange(ROWS), texts=[""] * ROWS)
        return Rollout(samples, self.rollout_logp, MASK, None, reference=self.reference_logp)

    def trainable(self) -> Iterator[nn.Parameter]:
        yield self.theta


def gradient(policy: Sigmoids, objective: ClippedObjective, micro: int = ROWS) -> tuple[Tensor, dict[str, Tensor]]:
    loss = StepLoss(policy.rollout(), ADV, objective, objective.weights(MASK), weights(MASK))
    for rows in torch.arange(ROWS).split(micro):
        backward(cast(Policy, policy), rows, loss)
    assert policy.theta.grad is not None
    return policy.theta.grad, loss.total


OBJECTIVES = {
    "gspo": SEQUENCE,
    "gspo_token": replace(SEQUENCE, level="seq_token"),
    "decision_mean": replace(SEQUENCE, aggregate="decision_mean"),
    "luspo": replace(SEQUENCE, aggregate="seq_mean_sum"),
    "rloo": replace(SEQUENCE, level="seq_sum"),
    "constant": replace(SEQUENCE, aggregate="constant", length=9),
    "k3": replace(SEQUENCE, kl=0.4, kl_kind="k3"),
    "exact": replace(SEQUENCE, kl=0.4),
    "dual": replace(SEQUENCE, level="seq_sum", dual=1.05),
    "limit": replace(SEQUENCE, level="seq_sum", log_ratio_limit=0.02),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("width", "micro"), [(1, ROWS), (1, 2), (2, 4), (K, 1)])
def test_pieces_and_micro_batches_change_nothing(name: str, width: int, micro: int):
    grad, metrics = gradient(Sigmoids(), OBJECTIVES[name])
    assert grad.norm() > 1e-3
    assert name != "dual" or metrics["dual_frac"] > 0
    parts, found = gradient(Sigmoids(width), OBJECTIVES[name], micro)
    torch.testing.assert_close(parts, grad, rtol=1e-12, atol=1e-14)
    assert found.keys() == metrics.keys()
    for key in metrics:
        torch.testing.assert_close(found[key], metrics[key], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("width", [1, K])
def test_the_gradient_is_that_of_the_published_formula(width: int):
    """GSPO, eq. 5 to 7: the mean over rows of min(s A, clip(s) A), s = exp(mean log-ratio), by autograd."""
    policy = Sigmoids()
    logp = policy.of(torch.arange(ROWS), torch.arange(K), False).logp
    d = (logp - policy.rollout_logp).where(MASK, 0.0)
    used = MASK.any(1)
    s = (d.sum(1)[used] / MASK.sum(1)[used]).exp()
    wanted = -torch.minimum(s * ADV[used], s.clamp(0.97, 1.035) * ADV[used]).mean()
    grad, metrics = gradient(Sigmoids(width), SEQUENCE, micro=2)
    assert 0 < metrics["clip_frac"] < metrics["outside_frac"] < 1
    torch.testing.assert_close(metrics["loss"], wanted.detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(grad, torch.autograd.grad(wanted, policy.theta)[0], rtol=1e-6, atol=1e-9)


def test_only_rows_in_pieces_are_replayed_twice():
    for width, objective, expected in (
        (K, SEQUENCE, [(K, True)] * 2),
        (1, replace(SEQUENCE, level="token"), [(1, True)] * 2 * K),
        (1, SEQUENCE, [(1, False)] * 2 * K + [(1, True)] * 2 * K),
    ):
        policy = Sigmoids(width)
        gradient(policy, objective)
        assert policy.visits == expected


@pytest.mark.parametrize("width", [1, K])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_ratio_of_an_unmoved_policy_is_one(width: int, name: str):
    _, metrics = gradient(Sigmoids(width, drift=0.0), OBJECTIVES[name])
    assert metrics["abs_log_ratio_max"] == 0.0 and metrics["clip_frac"] == 0.0
    assert metrics["ratio"].item() == pytest.approx(1.0, abs=1e-6)  # a sum of float32 shares


def test_a_policy_that_claims_whole_rows_and_gives_columns_is_refused():
    policy = Sigmoids(1)
    policy.whole_rows = True
    with pytest.raises(ValueError, match="whole_rows"):
        gradient(policy, SEQUENCE)


def test_a_policy_that_leaves_out_a_decision_is_refused():
    class Forgetful(Sigmoids):
        def look(self, rollout: Rollout, rows: Tensor, view: View, visit: Callable, **_: object) -> None:
            super().look(rollout, rows, view, lambda seen: visit(seen) if 2 not in seen.columns else None)

    with pytest.raises(ValueError, match="leaves out"):
        gradient(Forgetful(1), SEQUENCE)
