"""Published numbers of what becomes of a reward before its gradient is taken: SRPO and ReFL."""

from typing import Any

import pytest
import torch
from torch import Tensor

import golden
from flowrl.contracts import Field
from flowrl.core.objectives.reward_gradient import discount_at, hinge, relative_reward
from samplers.direct_align import align_branches, align_levels, injected
from samplers.predictions import clean_from, velocity_from
from samplers.schedules import shifted

Case = dict[str, Any]


def inputs(case: Case) -> dict[str, Tensor]:
    return {name: golden.tensor(value, torch.float32) for name, value in case["inputs"].items()}


@pytest.mark.parametrize("case", golden.cases("direct/srpo_reward.json"))
def test_srpo_reward(case: Case) -> None:
    x, params = inputs(case), case["params"]
    embed = x["image_embed"].requires_grad_()
    cosines = [torch.cosine_similarity(embed, x[f"text_embed_{side}"]) for side in ("pos", "neg")]
    scale = 1.0 if params["kind"] == "hps" else torch.tensor(params["logit_scale_log"]).exp() / params["divide_by"]
    reward = relative_reward(*(scale * c for c in cosines), params["k"])
    loss = hinge(reward, params["threshold"]).mean()
    golden.check({"reward": reward, "loss": loss, "grad_image_embed": torch.autograd.grad(loss, embed)[0]}, case)


def truncated(s: float | Tensor) -> float:
    """The time that SRPO hands to its model: a thousandth, the rest cut off."""
    return int(float(s) * 1000) / 1000


def picture(packed: Tensor) -> Tensor:
    """The stand-in for the decoder: patches of 2 x 2 latents laid out again, [16, 4, 4], and clamped."""
    z = packed.reshape(2, 2, 16, 2, 2).permute(2, 0, 3, 1, 4).reshape(16, 4, 4)
    return ((0.2 * (z / 0.3611 + 0.1159)) / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("case", golden.cases("direct/srpo_step.json"))
def test_srpo_step(case: Case) -> None:
    x, params = inputs(case), case["params"]
    noise, w, b, c = x["noise_packed"], x["w"].requires_grad_(), x["b"].requires_grad_(), x["c"]
    number, roll = params["timestep_length"], shifted(params["rollout_steps"], params["shift"])
    x0 = noise
    with torch.no_grad():
        for s, s_next in zip(roll[:-1], roll[1:], strict=True):
            x0 = x0 + (s_next - s) * (x0 * w + b + c * truncated(s))
    ends = shifted(params["vis_sampling_step"], params["shift"])[params["train_timestep"]].tolist()
    table, got, losses = align_levels(*ends, number), [], []
    branches = align_branches(number, params["mid_timestep"], params["groundtruth_ratio"])
    texts = {"positive": x["P_positive"], "negative": x["P_negative"]}
    for name, branch in zip(("denoise", "inversion"), branches, strict=True):
        s, s_next = table[branch.begin], table[branch.end]
        state = injected(x0, noise, s)
        at = torch.tensor([0])
        v, gain = state * w + b + c * truncated(s), float((s_next - s) / (1 - s_next))
        clean = Field(at, at, float(s), state, v, x0, noise - x0, gain=gain).recovered
        discount = discount_at(params["discount_pos" if name == "denoise" else "discount_inv"], branch.place, number)
        first, second = texts if name == "denoise" else reversed(texts)
        fits = {text: (picture(clean) * texts[text]).sum()[None] for text in texts}
        reward = relative_reward(fits[first], fits[second], discount)
        losses.append(hinge(reward, params["reward_threshold"]).mean() / params["branches_per_update"])
        step = {"branch": name, "index_from": branch.begin, "index_to": branch.end, "sigma_from": s, "sigma_to": s_next}
        step |= {"model_timestep": truncated(s), "noisy": state, "recovered": clean, "reward": reward}
        got.append(step | {"reward_k": discount, "first_text": first})
    grads = torch.autograd.grad(sum(losses), [w, b])  # pyright: ignore[reportArgumentType]
    whole = {"rollout_sigmas": roll, "x0_rollout": x0, "k_steps": branches[0].end - branches[0].begin}
    whole |= {"sigma_table": table, "last_branch_loss": losses[-1], "grad_w": grads[0], "grad_b": grads[1]}
    golden.check(whole, case, skip=["branches"])
    for step, stored in zip(got, case["outputs"]["branches"], strict=True):
        golden.check(step, case | {"outputs": stored})


@pytest.mark.parametrize("case", golden.cases("direct/refl.json"))
def test_refl(case: Case) -> None:
    x, params = inputs(case), case["params"]
    w, s = x["w"].requires_grad_(), (1 - params["alpha_bar"]) ** 0.5
    epsilon = x["x_t"] * w[:, None, None] + x["b"][:, None, None]
    clean = clean_from(x["x_t"], velocity_from("epsilon", x["x_t"], epsilon, s), s)
    reward = (clean * x["P"]).flatten(1).sum(1)
    loss = params["grad_scale"] * hinge(reward, params["threshold"]).mean()
    golden.check({"x0": clean, "reward": reward, "loss": loss, "grad_w": torch.autograd.grad(loss, w)[0]}, case)
