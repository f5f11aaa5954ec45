"""Published numbers of the losses of preferences, and of the pairs that they are trained on."""

from typing import Any

import pytest
import torch
from torch import Tensor

import golden
from flowrl.core.advantages.combined import advantages
from flowrl.core.objectives import divergence
from flowrl.core.objectives.aggregate import weights
from flowrl.core.objectives.clipped import clipped_loss
from flowrl.core.objectives.matching import mean_square
from flowrl.core.objectives.preference import (
    beta_of_epsilon,
    implicit_rewards,
    opa_dpo_loss,
    pair_loss,
    preference_loss,
    rpo_loss,
)
from flowrl.core.pairs import best_and_worst

Case = dict[str, Any]


def inputs(case: Case) -> dict[str, Tensor]:
    return {name: golden.tensor(value, torch.float32) for name, value in case["inputs"].items()}


def halves(error: Tensor) -> Tensor:
    """[p, 2] of a batch whose first half is preferred."""
    return error.reshape(2, -1).T


@pytest.mark.parametrize("case", golden.cases("direct/diffusion_dpo.json"))
def test_diffusion_dpo(case: Case) -> None:
    x, pred = inputs(case), inputs(case)["model_pred"].requires_grad_()
    error, reference = (mean_square(v - x["target"]) for v in (pred, x["ref_pred"]))
    loss, metrics = pair_loss(implicit_rewards(halves(error), halves(reference), case["params"]["beta"]))
    got = {"loss": loss.mean(), "implicit_acc": metrics["implicit_accuracy"].mean(), "inside_term": metrics["margin"]}
    got |= {"model_mse_mean": error.mean(), "ref_mse_mean": reference.mean()}
    golden.check(got | {"grad_model_pred": torch.autograd.grad(loss.mean(), pred)[0]}, case)


@pytest.mark.parametrize("case", golden.cases("direct/flow_dpo.json", "direct/flow_dpo_beta_t.json"))
def test_flow_dpo(case: Case) -> None:
    x, sides, beta = inputs(case), ("chosen", "rejected"), case["params"]["beta"]
    t, got = x["sigma"].reshape(-1, 1, 1, 1), {}
    preds = [x[f"pred_{side}"].requires_grad_() for side in sides]
    if golden.kind(case) == "flow_dpo_beta_t":
        beta = beta_of_epsilon(beta, 1 - x["sigma"])
        got["beta_t"], beta = beta, beta[:, None]
    targets = [x["noise"] - x[f"x0_{side}"] for side in sides]
    error = torch.stack([mean_square(v - target) for v, target in zip(preds, targets, strict=True)], 1)
    refs = [x[f"ref_{side}"] for side in sides]
    reference = torch.stack([mean_square(v - target) for v, target in zip(refs, targets, strict=True)], 1)
    implicit = implicit_rewards(error, reference, beta)
    loss, metrics = pair_loss(implicit)
    gradients = torch.autograd.grad(loss.mean(), preds)
    got |= {"loss": loss.mean(), "implicit_accuracy": metrics["implicit_accuracy"].mean()}
    for number, side in enumerate(sides):
        got |= {f"err_{side}": error[:, number], f"ref_err_{side}": reference[:, number]}
        got |= {f"implicit_reward_{side}": implicit[:, number], f"grad_pred_{side}": gradients[number]}
        got |= {f"xt_{side}": (1 - t) * x[f"x0_{side}"] + t * x["noise"]}
    golden.check({name: value for name, value in got.items() if name in case["outputs"]}, case)


@pytest.mark.parametrize("case", golden.cases("direct/rpo_loss.json"))
def test_rpo(case: Case) -> None:
    x, params, pred = inputs(case), case["params"], inputs(case)["pred"].requires_grad_()
    error, reference = (halves(mean_square(v - x["target"])) for v in (pred, x["ref_pred"]))
    loss, metrics = rpo_loss(error, reference, x["label"], beta=params["beta"], sft=params["sft_weight"])
    got = {f"{name}_loss": metrics[name].mean() for name in ("similarity", "preference")} | {"loss": loss.mean()}
    golden.check(got | {"grad_pred": torch.autograd.grad(loss.mean(), pred)[0]}, case)


@pytest.mark.parametrize("case", golden.cases("direct/opa_dpo.json"))
def test_opa_dpo(case: Case) -> None:
    params, given = case["params"], case["inputs"]
    policy = {name: golden.tensor(v).requires_grad_() for name, v in given["policy_logp"].items()}
    reference = {name: golden.tensor(v) for name, v in given["ref_logp"].items()}
    named = {"orig": "score_orig", "revised": "score_revised", "image": "image_relation_revised"}
    loss, metrics = opa_dpo_loss(
        policy,
        reference,
        beta=params["beta"],
        smoothing=params["label_smoothing"],
        coefs=(params["standard_pair_coef"], params["revised_pair_coef"], params["copo_coef"]),
        anchor=params["anchor_value"],
        anchor_coef=params["anchor_coef"],
        mdpo=params["mdpo_anchor"],
        weights={ours: None if given[name] is None else golden.tensor(given[name]) for ours, name in named.items()},
    )
    whole, anchor = loss.mean(), metrics["anchor"].mean()
    gradients = torch.autograd.grad(whole, list(policy.values()))
    got = {"pair_losses": [float(metrics[f"pair_{i}"].mean()) for i in range(4)], "anchor_loss": anchor, "loss": whole}
    got |= {"loss_without_anchor": whole - params["anchor_coef"] * anchor}
    golden.check(got | {"grad": dict(zip(policy, gradients, strict=True))}, case)


@pytest.mark.parametrize("case", golden.cases("direct/dpo_pair_formation.json"))
def test_pairs(case: Case) -> None:
    pairs = best_and_worst(golden.tensor(case["inputs"]["reward"]), golden.tensor(case["inputs"]["uid"]), ties=True)
    golden.check({"indices_flat": pairs.flatten().tolist()}, case)


def of_extremes(case: Case) -> bool:
    return golden.kind(case) in ("flow_grpo_per_prompt_dpo", "flow_grpo_per_prompt_sft")


@pytest.mark.parametrize("case", golden.cases("samplers/advantages.json", where=of_extremes))
def test_the_best_and_the_worst_of_flow_grpo(case: Case) -> None:
    """It marks them by advantages of 1 and -1, where it fine-tunes on the best ones the best alone."""
    names = case["inputs"]["prompts"]
    group = torch.tensor([names.index(name) for name in names])
    rewards = golden.tensor(case["inputs"]["rewards"])
    pairs, marks = best_and_worst(rewards, group), torch.zeros(len(rewards))
    marks[pairs[:, 0]] = 1.0
    if case["params"]["type"] == "dpo":
        marks[pairs[:, 1]] = -1.0
    golden.check({"advantages": marks, "zero_std_ratio": 1 - len(pairs) / len(group.unique())}, case)


@pytest.mark.parametrize("case", golden.cases("direct/pair_grpo_loss.json"))
def test_pair_grpo(case: Case) -> None:
    """GRPO as it is: the samples of two prompts that belong together are one group."""
    x, params, logp = inputs(case), case["params"], inputs(case)["logp"].requires_grad_()
    size = params["group_size_per_prompt"] * (2 if params["paired_prompts"] else 1)
    group = torch.arange(len(logp)) // size
    options = dict(unbiased=params["std"] == "unbiased", eps=params["eps"], clip=None)
    adv = advantages({"r": x["reward"]}, group, weights={"r": 1.0}, **options)
    loss, _ = clipped_loss(logp, logp.detach(), adv, clip_low=1.0, clip_high=1.0)
    loss = loss + params["kl_coef"] * divergence.penalty("k3", logp, x["ref_logp"])
    whole = (loss * weights(torch.ones_like(logp), "seq_mean_mean")).sum()
    golden.check({"advantage": adv, "loss": whole, "grad_logp": torch.autograd.grad(whole, logp)[0]}, case)


@pytest.mark.parametrize("case", golden.cases("direct/t2i_r1_bicot.json"))
def test_t2i_r1(case: Case) -> None:
    """GRPO as it is: the tokens of a plan and of its picture are decisions of one row."""
    x, params, parts = inputs(case), case["params"], ("text", "image")
    group = torch.arange(len(x["reward_per_func"])) // (params["num_generations"] * params["images_per_text"])
    rewards = {str(i): reward for i, reward in enumerate(x["reward_per_func"].T)}
    options = dict(unbiased=params["std"] == "unbiased", eps=params["eps"], clip=None, combine="sum")
    adv = advantages(rewards, group, weights=dict.fromkeys(rewards, 1.0), **options)
    leaves = [x[f"logp_{part}"].requires_grad_() for part in parts]
    copies = params["images_per_text"]
    logp, ref = (
        torch.cat([text.repeat_interleave(copies, 0), image], 1)
        for text, image in (leaves, [x[f"ref_logp_{part}"] for part in parts])
    )
    mask = torch.cat([x["mask_text"].repeat_interleave(copies, 0), torch.ones_like(x["logp_image"])], 1)
    kl = divergence.penalty("k3", logp, ref, mask=mask)
    loss, _ = clipped_loss(logp, logp.detach(), adv, clip_low=1.0, clip_high=1.0, mask=mask)
    share = weights(mask)
    whole = ((loss + params["kl_coef"] * kl) * share).sum()
    gradients = torch.autograd.grad(whole, leaves)
    got = {"advantage": adv, "loss": whole, "mean_kl": (kl * share).sum()}
    golden.check(got | {f"grad_logp_{part}": g for part, g in zip(parts, gradients, strict=True)}, case)


def test_pairs_of_several_and_what_makes_none():
    reward = torch.tensor([0.1, 0.9, 0.5, float("nan"), 0.3, 1.0, 1.0, 0.2])
    group = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
    assert best_and_worst(reward, group, number=3).tolist() == [[1, 0], [2, 4]]
    assert best_and_worst(reward, group, number=3, min_margin=0.3).tolist() == [[1, 0]]
    assert best_and_worst(reward, group, ties=True).tolist() == [[1, 0], [5, 6]]
    with pytest.raises(ValueError, match="number=0"):
        best_and_worst(reward, group, number=0)


def test_a_soft_label_lies_between_the_two():
    margin = torch.tensor([0.7, -2.0])
    got = preference_loss(margin, 0.25)
    torch.testing.assert_close(got, 0.25 * preference_loss(margin) + 0.75 * preference_loss(-margin))
