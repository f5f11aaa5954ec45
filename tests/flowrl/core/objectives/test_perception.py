"""Losses beside changed pictures, of PAPO and OPA-DPO: published numbers, and rows that have nothing to look at."""

from typing import Any

import pytest
import torch

import golden
from flowrl.contracts import Batch, LogProbs
from flowrl.core.objectives.grpo import ClippedObjective
from flowrl.core.objectives.perception import Perception
from flowrl.core.objectives.texts import CorrectedAnswers

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


@pytest.mark.parametrize(
    "case",
    golden.cases(
        "objectives/llm_aux_loss.json",
        where=lambda c: golden.kind(c) == "opa_dpo.loss" and not c["params"]["use_scores"],
    ),
)
def test_the_objective_of_corrected_answers_is_the_published_loss(case: Case) -> None:
    """Rows as a rollout has them, five of each prompt, the first bearing the loss; in parts of whole prompts alike."""
    params = case["params"]
    order = ("standard", "original", "ai", "mask_standard", "mask_ai")
    policy, reference = (
        torch.stack([golden.tensor(case["inputs"][of][name], torch.float64) for name in order], 1).flatten(0, 1)
        for of in ("policy", "reference")
    )
    anchor = params["anchor_value"], params["anchor_coef"], not params["mdpo_anchor"]
    objective = CorrectedAnswers(params["beta"], params["copo_coef"], *anchor)
    mask = torch.ones(policy.shape, dtype=torch.bool)  # published gradients are also of padding, whose log-probs are 0
    weights = objective.weights(mask).double()
    labels = torch.arange(len(policy)) // 5
    for parts in ([list(range(len(policy)))], [list(range(5)), list(range(5, len(policy)))]):
        logp, total = policy.clone().requires_grad_(), torch.zeros((), dtype=torch.float64)
        for part in map(torch.tensor, parts):
            of = reference[part]
            batch = Batch(of, torch.ones(len(part)), mask[part], reference=of, together=labels[part])
            loss, metrics = objective(LogProbs(part, torch.arange(policy.shape[1]), logp[part]), batch)
            total = total + (loss * weights[part]).sum()
            assert set(metrics) == {"pair_0", "pair_1", "pair_2", "pair_3", "anchor"}
        (grad,) = torch.autograd.grad(total, logp)
        found = {name: grad[i::5] for i, name in enumerate(order)}
        golden.check({"loss": total, "grad": found}, case, skip=["pair_losses", "anchor"])
    with pytest.raises(ValueError, match="five rows of each prompt"):
        four = Batch(policy[:4], torch.ones(4), mask[:4], reference=policy[:4], together=labels[:4])
        objective(LogProbs(torch.arange(4), torch.arange(policy.shape[1]), policy[:4]), four)


def test_whole_texts_are_compared_by_their_sums() -> None:
    objective = CorrectedAnswers(beta=0.5, image=0.0, anchor_coef=0.0, by="texts")
    logp = torch.tensor([[-1.0, -2.0], [-3.0, 9.0], [-1.0, -1.0], [-1.0, -1.0], [-2.0, -2.0]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True], [True, True]])
    batch = Batch(
        logp.detach(), torch.ones(5), mask, reference=torch.full((5, 2), -1.5), together=torch.zeros(5).long()
    )
    loss, _ = objective(LogProbs(torch.arange(5), torch.arange(2), logp), batch)
    margins = [0.5 * (0.0 - -1.5), 0.5 * (1.0 - -1.5)]
    expected = sum(-torch.nn.functional.logsigmoid(torch.tensor(margin)) for margin in margins)
    assert float((loss.detach() * objective.weights(mask)).sum()) == pytest.approx(float(expected))
