"""The implicit perception loss of PAPO: published numbers, and rows that have nothing to look at once more."""

from typing import Any

import pytest
import torch

import golden
from flowrl.contracts import Batch, LogProbs
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.objectives.perception import Perception

Case = dict[str, Any]
KINDS = {"low_var_kl": "k3", "kl": "k1"}


@pytest.mark.parametrize(
    "case", golden.cases("objectives/llm_policy_loss_other.json", where=lambda c: golden.kind(c) == "papo.loss")
)
def test_papo(case: Case) -> None:
    params, inputs = case["params"], {n: golden.tensor(v, torch.float64) for n, v in case["inputs"].items()}
    logp, mask = inputs["log_prob"].requires_grad_(), inputs["response_mask"].bool()
    entropy = params.get("ori_entropy_loss_coef", 0.0)
    perception = Perception(params["kl_prcp_coef"], KINDS[params["kl_prcp_penalty"]], entropy)  # pyright: ignore
    objective = ClippedObjective(
        params["clip_ratio_low"],
        params["clip_ratio_high"],
        dual=params["clip_ratio_dual"],
        kl=params.get("kl_coef", 0.0),
        kl_kind="k3",
        aggregate={"token": "decision_mean", "seq": "seq_mean_mean"}[params["loss_avg_mode"]],
        perception=perception,
    )
    shown = inputs["masked_image_log_prob"]
    rows, columns = (torch.arange(n) for n in logp.shape)
    batch = Batch(
        inputs["old_log_prob"], inputs["advantages"][:, 0], mask, reference=inputs.get("ref_log_prob"), shown=shown
    )
    loss, metrics = objective(LogProbs(rows, columns, logp), batch)
    weights = objective.weights(mask).to(loss)
    total = (loss * weights).sum()
    grad = torch.autograd.grad(total, logp)[0]
    assert (params.get("ori_entropy_loss_coef") is None) == ("perception_entropy" not in metrics)
    # the entropy beside the masked picture has no gradient and is no part of the loss here
    constant = params.get("aug_entropy_loss_coef", 0.0) * -shown[mask].mean()
    got = {"loss": total + constant, "kl_prcp": (metrics["perception"] * weights).sum(), "grad": grad}
    golden.check(got, case, skip=["pg_loss", "grad_masked"])


def test_a_row_without_other_pictures_gets_the_entropy_alone() -> None:
    logp = torch.tensor([[-1.0, -2.0], [-1.0, -3.0], [-2.0, -1.0]], requires_grad=True)
    shown = torch.tensor([[-2.0, -2.5], [torch.nan, torch.nan], [-2.0, -4.0]])
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    loss, metrics = Perception(coef=2.0, entropy=0.1).loss(logp, shown, mask)
    (grad,) = torch.autograd.grad(loss.sum(), logp)
    expected = torch.tensor([[2 * (torch.e**-1 - 1) - 0.1, 2 * (torch.e**-0.5 - 1) - 0.1], [-0.1, -0.1], [-0.1, 0.0]])
    torch.testing.assert_close(grad, expected)
    assert metrics["perception"][1:].tolist() == [[0.0, 0.0], [0.0, 0.0]] and not loss[2, 1]
    assert metrics["perception_entropy"].tolist() == [[2.0, 2.5], [0.0, 0.0], [2.0, 0.0]]
    with pytest.raises(ValueError, match="Rollout.shown is not filled in"):
        Perception().loss(logp, None, mask)
