"""Published terms beside the policy gradient: CHORD, VAPO, DPO, BCO, IPO, MPO, OPA-DPO."""

from typing import Any

import pytest
import torch
from torch import Tensor

import golden
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.preference import opa_dpo_loss
from flowrl.core.objectives.terms import likelihood, pair_terms, policy_share, row_log_ratio

Case = dict[str, Any]
FILE = "objectives/llm_aux_loss.json"
KINDS = {"sigmoid": "dpo", "bco_pair": "bco", "ipo": "ipo"}


def floats(values: Any) -> Tensor:
    return golden.tensor(values, torch.float64)


def mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * weights(mask.bool(), "decision_mean")).sum()


@pytest.mark.parametrize("case", golden.cases(FILE, where=lambda c: golden.kind(c) == "chord.loss"))
def test_chord(case: Case) -> None:
    params, mask = case["params"], floats(case["inputs"]["response_mask"])
    logp = floats(case["inputs"]["expert_log_prob"]).requires_grad_()
    value = likelihood(logp, "uncertain" if params["enable_phi_function"] else "one")
    aggregate = "decision_mean" if params["token_level"] else "seq_mean_mean"
    sft = (value * weights(mask.bool(), aggregate)).sum()
    loss = policy_share(params["mu"]) * params["grpo_loss"] + params["mu"] * sft
    grad = torch.autograd.grad(loss, logp)[0]
    golden.check({"sft_loss": sft, "loss": loss, "grad": grad}, case)


@pytest.mark.parametrize("case", golden.cases(FILE, where=lambda c: golden.kind(c) == "vapo.positive_lm_loss"))
def test_likelihood_of_right_answers(case: Case) -> None:
    inputs = case["inputs"]
    logp = floats(inputs["log_prob"]).requires_grad_()
    right = floats(inputs["response_mask"]) * floats(inputs["correct"])[:, None]
    nll = mean(likelihood(logp), right)
    loss = case["params"]["coef"] * nll
    golden.check({"nll": nll, "loss": loss, "grad": torch.autograd.grad(loss, logp)[0]}, case)


@pytest.mark.parametrize("case", golden.cases(FILE, where=lambda c: golden.kind(c).startswith("trl.preference.")))
def test_preferences_of_texts(case: Case) -> None:
    params, inputs = case["params"], case["inputs"]
    logits = floats(inputs["logits"]).requires_grad_()
    labels, mask = torch.tensor(inputs["labels"]), floats(inputs["completion_mask"])
    mask = mask[:, -labels.shape[1] :].bool()
    logp = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    offset = floats(inputs["ref_minus_policy_log_prob"])
    offset = offset[:, None] / mask.sum(1, keepdim=True) if offset.ndim == 1 else offset
    ratio = row_log_ratio(logp, logp.detach() + offset, mask)
    half = len(ratio) // 2
    better, worse, length = ratio[:half], ratio[half:], mask.sum(1).double()
    total = torch.zeros((), dtype=torch.float64)
    for name, weight in zip(params["loss_types"], params["loss_weights"], strict=True):
        if name == "sft":
            total = total + weight * mean(likelihood(logp[:half]), mask[:half])
        else:
            lengths = length[:half], length[half:]  # label_smoothing is not read by these kinds there
            values = pair_terms(better, worse, KINDS[name], beta=params["beta"], lengths=lengths)
            total = total + weight * values.mean()
    got = {"loss": total, "chosen_logratios": better, "rejected_logratios": worse}
    golden.check(got | {"grad_logits": torch.autograd.grad(total, logits)[0]}, case)


NAMES = {"standard": "gt", "original": "orig", "ai": "revised"}
NAMES |= {"mask_standard": "gt_masked_img", "mask_ai": "revised_masked_img"}


@pytest.mark.parametrize("case", golden.cases(FILE, where=lambda c: golden.kind(c) == "opa_dpo.loss"))
def test_opa_dpo(case: Case) -> None:
    params, inputs = case["params"], case["inputs"]
    leaves = {name: floats(value).requires_grad_() for name, value in inputs["policy"].items()}
    policy = {NAMES[name]: value for name, value in leaves.items()}
    reference = {NAMES[name]: floats(value) for name, value in inputs["reference"].items()}
    given = None
    if params["use_scores"]:
        columns = {"revised": "ai_scores", "orig": "original_scores", "image": "ai_image_relations"}
        given = {name: floats(inputs[column]) for name, column in columns.items()}
    loss, metrics = opa_dpo_loss(
        policy,
        reference,
        beta=params["beta"],
        coefs=(1.0, 1.0, params["copo_coef"]),
        anchor=params["anchor_value"],
        anchor_coef=params["anchor_coef"],
        mdpo=params["mdpo_anchor"],
        weights=given,
    )
    total = loss.mean()
    grads = dict(zip(leaves, torch.autograd.grad(total, tuple(leaves.values())), strict=True))
    got = {"loss": total, "pair_losses": torch.stack([metrics[f"pair_{i}"].mean() for i in range(4)])}
    golden.check(got | {"anchor": metrics["anchor"].mean(), "grad": grads}, case)


def test_every_kind_of_term_is_known() -> None:
    known = {"chord.mu_schedule", "chord.loss", "vapo.positive_lm_loss", "opa_dpo.loss"}
    known |= {"trl.preference.sigmoid", "trl.preference.sigmoid+bco_pair+sft"}
    known |= {"trl.preference.bco_pair", "trl.preference.ipo"}
    golden.account([golden.kind(case) for case in golden.load(FILE)], known)


def test_what_is_no_term_is_refused() -> None:
    with pytest.raises(ValueError, match="phi='two': choose one of one, p, uncertain"):
        likelihood(torch.zeros(1, 1), "two")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="kind='ipo': choose one of dpo, bco and, with lengths, ipo"):
        pair_terms(torch.zeros(1), torch.zeros(1), "ipo")


def test_labels_are_smoothed_towards_the_other_side() -> None:
    better, worse = torch.tensor([0.3, 2.0, -1.0]), torch.tensor([0.1, -1.0, 1.0])
    whole, turned = (pair_terms(*sides, beta=0.5) for sides in ((better, worse), (worse, better)))
    torch.testing.assert_close(pair_terms(better, worse, beta=0.5, smoothing=0.2), 0.8 * whole + 0.2 * turned)
