"""Published numbers of learning from the gradient of a reward: SRPO, ReFL, AlignProp and DRaFT."""

from typing import Any

import pytest
import torch
from torch import Tensor

import golden
from flowrl.core.objectives.reward_gradient import backward_through, hinge, relative_reward
from samplers.direct_align import align_branches, align_levels, discount_at, injected, recovered
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
        clean = recovered(state, state * w + b + c * truncated(s), noise, s, s_next)
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


@pytest.mark.parametrize("case", golden.cases("direct/truncated_reward_backprop.json"))
def test_truncated_backpropagation(case: Case) -> None:
    x, params = inputs(case), case["params"]
    number, first, guidance = params["num_steps"], params["backprop_from_step"], params["guidance_scale"]
    w, levels = x["w"].requires_grad_(), [1 - i / number for i in range(number + 1)]

    def velocity(i: int, state: Tensor) -> Tensor:
        sides = [state * w[:, None, None] + bias[:, None, None] + 0.1 * levels[i] for bias in (x["b_u"], x["b"])]
        return sides[0] + guidance * (sides[1] - sides[0])

    states = [x["x_T"]]
    with torch.no_grad():
        for i in range(number):
            states.append(states[-1] + (levels[i + 1] - levels[i]) * velocity(i, states[-1]))
    pull = -x["P"].expand_as(states[-1]) / len(states[-1])
    backward_through(states[first:-1], levels[first:], pull, lambda k, state: velocity(first + k, state))
    reward = (states[-1] * x["P"]).flatten(1).sum(1)
    golden.check({"x_final": states[-1], "reward": reward, "grad_w": w.grad}, case)


@pytest.mark.parametrize("nested", [True, False])
def test_the_gradient_of_a_walk_is_that_of_its_whole_graph(nested: bool):
    w, levels = torch.tensor([0.7, -0.3, 1.1], dtype=torch.float64, requires_grad=True), [0.9, 0.5, 0.2, 0.0]
    start = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def velocity(k: int, state: Tensor) -> Tensor:
        return (state * w + levels[k]).sin()

    states = [start]
    for k in range(3):
        seen = states[-1] if nested else states[-1].detach()
        states.append(states[-1] + (levels[k + 1] - levels[k]) * velocity(k, seen))
    loss = states[-1][2].square().sum()  # of the third row alone
    wanted = torch.autograd.grad(loss, w)[0]
    pull = torch.zeros_like(start)
    pull[2] = 2 * states[-1][2].detach()
    backward_through([state.detach() for state in states[:-1]], levels, pull, velocity, nested=nested)
    torch.testing.assert_close(w.grad, wanted, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="2 states and 4 levels"):
        backward_through(states[:2], levels, pull, velocity)
