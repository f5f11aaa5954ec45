"""Published numbers of the losses of the forward process."""

from typing import Any

import pytest
import torch
from torch import Tensor

import golden
from flowrl.core.advantages.combined import advantages
from flowrl.core.objectives.clipped import clipped_loss
from flowrl.core.objectives.matching import (
    adaptive_divergence,
    awm_log_prob,
    crd_loss,
    dgpo_loss,
    elbo_weight,
    implicit_reward,
    mean_square,
    moved_away,
    nft_loss,
    reward_probability,
    reward_weight,
)

Case = dict[str, Any]
WEIGHTING = {"Uniform": "uniform", "t**2": "t2"}


def inputs(case: Case) -> dict[str, Tensor]:
    return {n: golden.tensor(v, torch.float32) for n, v in case["inputs"].items() if not isinstance(v[0], str)}


def labels(names: list) -> Tensor:
    return torch.tensor([sorted(set(names)).index(name) for name in names])


def along(level: Tensor, x: Tensor) -> Tensor:
    return level.reshape(-1, *[1] * (x.dim() - 1))


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of)[0]


def nft(x: dict[str, Tensor], probability: Tensor, params: Case) -> tuple[Tensor, dict[str, Tensor]]:
    t = along(x["t"], x["x0"])
    clean, old = x["xt"] - t * x["pred"], x["xt"] - t * x["old_pred"]
    options = dict(beta=params["beta"], scale=params["adv_clip_max"], least=params["adaptive_weight_min"])
    return nft_loss(clean, old, x["x0"], probability, **options)


@pytest.mark.parametrize("case", golden.cases("direct/diffusion_nft.json"))
def test_diffusion_nft(case: Case) -> None:
    x, params = inputs(case), case["params"]
    t, pred = along(x["t"], x["x0"]), x["pred"].requires_grad_()
    x["xt"] = (1 - t) * x["x0"] + t * x["noise"]
    r = reward_probability(x["advantage"], clip=params["adv_clip_max"], mode=params["adv_mode"])
    loss, metrics = nft(x, r, params)
    policy, kl = loss.mean(), mean_square(pred - x["ref_pred"]).mean()
    whole = policy + params["kl_coef"] * kl
    got = {"xt": x["xt"], "r": r, "policy_loss": policy, "kl": kl, "loss": whole, "grad_pred": gradient(whole, pred)}
    got |= {"unweighted_policy_loss": policy / params["adv_clip_max"]}
    golden.check(got | {f"{side}_loss": metrics[side] for side in ("positive", "negative")}, case)


@pytest.mark.parametrize("case", golden.cases("samplers/losses.json", where=lambda c: c["scheme"] == "diffusion_nft"))
def test_diffusion_nft_of_verl_omni(case: Case) -> None:
    x, params = inputs(case), case["params"]
    x["pred"], x["old_pred"] = x["prediction"], x["old_prediction"]
    loss, metrics = nft(x, x["reward_prob"], params)
    kl = mean_square(x["prediction"] - x["ref_prediction"]).mean()
    got = {"policy_loss": loss.mean(), "ref_kl": kl, "loss": loss.mean() + params["ref_kl_coef"] * kl}
    golden.check(got | {f"{side}_loss": metrics[side].mean() for side in ("positive", "negative")}, case)


def is_probability(case: Case) -> bool:
    return golden.kind(case) in ("nft_reward_prob", "nft_reward_probability")


@pytest.mark.parametrize(
    "case", golden.cases("direct/nft_reward_prob.json", "samplers/advantages.json", where=is_probability)
)
def test_reward_probability(case: Case) -> None:
    given, params = case["inputs"], case["params"]
    rewards = golden.tensor(given.get("reward", given.get("rewards")), torch.float32)
    options = dict(scale="batch" if params["global_std"] else "group", unbiased=True, eps=params.get("eps", 1e-4))
    group = labels(given.get("group", given.get("group_ids")))
    adv = advantages({"r": rewards}, group, weights={"r": 1.0}, clip=None, **options)
    probability = reward_probability(adv, clip=params["adv_clip_max"], mode=params.get("adv_mode", "all"))
    golden.check({"advantages" if "rewards" in given else "advantage": adv, "reward_prob": probability}, case)


@pytest.mark.parametrize("case", golden.cases("direct/awm.json"))
def test_awm(case: Case) -> None:
    x, params, pred = inputs(case), case["params"], inputs(case)["pred"].requires_grad_()
    steps, batch, limit = params["num_timesteps"], params["batch"], params["adv_clip_max"]
    options = dict(weighting=WEIGHTING.get(params["weighting"], params["weighting"]), power=params["ghuber_power"])
    target = (x["noise"] - x["x0"].repeat(steps, 1, 1, 1)).double()
    logp, old = (awm_log_prob(mean_square(v.double() - target), x["t"], **options) for v in (pred, x["old_pred"]))
    adv = x["advantage"].clamp(-limit, limit) * params["advantage_max"] / limit
    level = {"exp_first": "token", "sum_first": "seq_mean"}[params["loss_type"]]
    by_sample = [value.reshape(steps, batch).T for value in (logp, old)]
    clips = dict(clip_low=params["clip_range"], clip_high=params["clip_range"])
    loss, metrics = clipped_loss(*by_sample, adv, level=level, **clips)
    weight = elbo_weight(x["t"]) if params["kl_weight"] == "ELBO" else torch.ones(steps * batch)
    kl, moved = ((weight * mean_square(pred - x[name])).mean() for name in ("ref_pred", "ema_pred"))
    whole = loss.mean() + params["kl_coef"] * kl + params["ema_kl_coef"] * moved
    ratio = metrics["ratio"].T.flatten() if level == "token" else metrics["ratio"][:, 0]
    got = {"log_prob": logp, "old_log_prob": old, "ratio": ratio, "policy_loss": loss.mean(), "loss": whole}
    golden.check(got | {"kl_loss": kl, "ema_kl_loss": moved, "grad_pred": gradient(whole, pred)}, case)


@pytest.mark.parametrize("case", golden.cases("direct/dgpo.json"))
def test_dgpo(case: Case) -> None:
    x, params, pred = inputs(case), case["params"], inputs(case)["pred"].requires_grad_()
    target, group = x["noise"] - x["x0"], golden.tensor(case["inputs"]["group"])
    error, old, reference = (mean_square(v - target) for v in (pred, x["old_pred"], x["ref_pred"]))
    adv = x["advantage"].clamp(-params["adv_clip_max"], params["adv_clip_max"])
    held, ratio = moved_away(error, old, adv, clip=params["clip_range"])
    against = old if params["use_ema_ref"] else reference
    options = dict(beta=params["beta_dpo"], size=params["group_size"], held=held if params["clip_dsm"] else None)
    loss, metrics = dgpo_loss(error, against, adv, group, **options)
    divergence = mean_square(pred - x["ref_pred"])
    if params["clip_kl"]:
        divergence = torch.where(held, divergence.detach(), divergence)
    whole = loss.mean() + params["kl_coef"] * divergence.mean()
    first = torch.tensor([case["inputs"]["group"].index(label) for label in range(int(group.max()) + 1)])
    got = {
        "dsm": error,
        "ref_dsm": against,
        "dgpo_loss": loss.mean(),
        "loss": whole,
        "grad_pred": gradient(whole, pred),
    }
    got |= {name: value[first] for name, value in metrics.items()}
    told = {"ratio": ratio, "clipped": held, "kl_loss": divergence.mean()}
    golden.check(got | {name: value for name, value in told.items() if name in case["outputs"]}, case)


@pytest.mark.parametrize("case", golden.cases("direct/crd.json"))
def test_crd(case: Case) -> None:
    x, params, pred = inputs(case), case["params"], inputs(case)["pred"].requires_grad_()
    target = x["noise"] - x["x0"]
    implicit = implicit_reward(pred - target, x["old_pred"] - target, adaptive=params["adaptive_logp"])
    adv01 = reward_probability(x["advantage"], clip=params["adv_clip_max"])
    options = dict(beta=params["crd_beta"], temperature=params["weight_temp"], match=params["loss_type"])
    loss, _ = crd_loss(implicit, adv01, torch.zeros(len(pred)).long(), **options)
    policy = loss.mean() * params["adv_clip_max"] / params["crd_beta"]
    factor = adaptive_divergence(adv01, params["kl_coef"]) if params["reward_adaptive_kl"] else torch.ones(len(pred))
    kl = params["kl_coef"] * (factor * mean_square(pred - x["ref_pred"])).mean()
    got = {"r_theta": implicit, "adv01": adv01, "unscaled": loss.mean(), "policy_loss": policy, "kl_loss": kl}
    golden.check(got | {"loss": policy + kl, "grad_pred": gradient(policy + kl, pred)}, case)


@pytest.mark.parametrize("case", golden.cases("direct/flow_rwr.json"))
def test_flow_rwr(case: Case) -> None:
    x, pred = inputs(case), inputs(case)["pred"].requires_grad_()
    weight = reward_weight(x["reward"], case["params"]["temperature"])
    loss = (weight * mean_square(pred - (x["noise"] - x["x0"]))).mean()
    golden.check({"weight": weight, "loss": loss, "grad_pred": gradient(loss, pred)}, case)
