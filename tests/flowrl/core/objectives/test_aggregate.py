"""Weights computed once over the batch make any split of it sum to the same gradient."""

import pytest
import torch
from torch import Tensor

from flowrl.core.objectives.aggregate import MODES, merge_metrics, reduce_metrics, weights
from flowrl.core.objectives.clipped import clipped_loss


def ragged(rows: int = 12, width: int = 9) -> Tensor:
    """Lengths 0 to width, one interior hole, one empty row."""
    mask = torch.arange(width) < torch.arange(rows)[:, None] * width // (rows - 1)
    mask[-1, 3] = False
    return mask


def update(mask: Tensor, parts: list[Tensor], share: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradient of a shared parameter and metrics of an update whose rows come in these parts."""
    draw = torch.Generator().manual_seed(0)
    rollout_logp, adv = torch.randn(mask.shape, generator=draw), torch.randn(len(mask), generator=draw)
    feature = torch.randn(*mask.shape, 4, generator=draw)
    parameter = torch.tensor([0.1, -0.2, 0.05, 0.15], requires_grad=True)
    metrics: dict[str, Tensor] = {}
    for rows in parts:
        logp = rollout_logp[rows] + feature[rows] @ parameter
        loss, part = clipped_loss(logp, rollout_logp[rows], adv[rows], clip_low=0.2, clip_high=0.2, mask=mask[rows])
        (loss * share[rows]).sum().backward()
        metrics = merge_metrics(metrics, reduce_metrics(part, weights(mask)[rows]))
    assert parameter.grad is not None
    return parameter.grad, metrics


@pytest.mark.parametrize("mode", MODES)
def test_any_split_gives_the_same_gradient_and_metrics(mode: str) -> None:
    mask = ragged()
    share = weights(mask, mode, constant=40.0 if mode == "constant" else None)
    whole, metrics = update(mask, [torch.arange(12)], share)
    assert whole.abs().max() > 0.01
    draw = torch.Generator().manual_seed(4)
    for _ in range(20):
        order = torch.randperm(12, generator=draw)
        cuts = torch.randint(0, 13, (3,), generator=draw).sort().values
        parts = [part for part in torch.tensor_split(order, cuts) if len(part)]
        grad, seen = update(mask, parts, share)
        torch.testing.assert_close(grad, whole, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(seen, metrics, rtol=1e-5, atol=1e-6)


def test_the_mean_of_micro_batch_means_is_another_gradient() -> None:
    mask = ragged()
    whole, _ = update(mask, [torch.arange(12)], weights(mask))
    parts = list(torch.arange(12).split(3))
    local = torch.cat([weights(mask[rows]) / len(parts) for rows in parts])
    averaged, _ = update(mask, parts, local)
    assert (averaged - whole).norm() > 0.1 * whole.norm()


def test_decisions_may_be_split_too() -> None:
    mask, loss = ragged(), torch.randn(12, 9, generator=torch.Generator().manual_seed(1))
    for mode in ("decision_mean", "seq_mean_mean"):
        share = weights(mask, mode)
        columns = sum((loss[:, k] * share[:, k]).sum() for k in range(9))
        torch.testing.assert_close(columns, (loss * share).sum(), rtol=1e-5, atol=1e-6)


def test_each_mode_is_the_mean_it_names() -> None:
    mask, loss = ragged(), torch.randn(12, 9, generator=torch.Generator().manual_seed(2))
    rows = [row[valid] for row, valid in zip(loss, mask, strict=True) if valid.any()]
    wanted = {
        "decision_mean": torch.cat(rows).mean(),
        "seq_mean_mean": torch.stack([row.mean() for row in rows]).mean(),
        "seq_mean_sum": torch.stack([row.sum() for row in rows]).mean(),
        "constant": torch.cat(rows).sum() / 40,
    }
    for mode, want in wanted.items():
        got = (loss * weights(mask, mode, constant=40.0 if mode == "constant" else None)).sum()
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_full_masks_make_the_means_agree() -> None:
    mask = torch.ones(5, 4)
    for mode in ("decision_mean", "seq_mean_mean"):
        torch.testing.assert_close(weights(mask, mode), torch.full((5, 4), 1 / 20))
    torch.testing.assert_close(weights(mask, "seq_mean_sum"), torch.full((5, 4), 1 / 5))


def test_empty_rows_count_on_request() -> None:
    mask = torch.tensor([[1, 1], [0, 0], [1, 0]])
    for mode in ("seq_mean_mean", "seq_mean_sum"):
        counted, left_out = weights(mask, mode, count_empty_rows=True), weights(mask, mode)
        torch.testing.assert_close(counted * 3, left_out * 2)
    assert torch.equal(weights(mask, count_empty_rows=True), weights(mask))


@pytest.mark.parametrize("mode", ["decision_mean", "seq_mean_mean", "seq_mean_sum"])
def test_an_empty_batch_weighs_nothing(mode: str) -> None:
    assert torch.equal(weights(torch.zeros(3, 2), mode), torch.zeros(3, 2))


def test_merging_adds_means_and_keeps_the_largest_maximum() -> None:
    first, second = (
        {"x": torch.tensor(1.0), "y_max": torch.tensor(3.0)},
        {"x": torch.tensor(2.0), "y_max": torch.tensor(2.0)},
    )
    merged = merge_metrics(merge_metrics({}, first), second)
    assert (float(merged["x"]), float(merged["y_max"])) == (3.0, 3.0)


def test_errors() -> None:
    mask = torch.ones(2, 2)
    with pytest.raises(ValueError, match="choose one of decision_mean"):
        weights(mask, "token_mean")
    for mode, constant in (("constant", None), ("constant", 0.0), ("decision_mean", 3.0)):
        with pytest.raises(ValueError, match="needs a positive constant"):
            weights(mask, mode, constant=constant)
